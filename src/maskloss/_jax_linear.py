"""_linear for JAX: chunks of kept rows in a loop whose length is decided at run time, with a derivative of its own.

Reverse mode alone: jax.custom_vjp refuses jvp, and the loop a derivative of the derivative.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import _jax, _linear, _rows
from ._arrays import Array, Namespace, is_static
from ._arrays.jax import xp
from ._ways import Way

# Of the kernel's gradient: the product of a whole chunk would need as much memory again.
TILE = 1 << 12


IN_CHUNKS = (
    "a linear loss of JAX in chunks has no {}; pass implementation='autodiff' to linear_cross_entropy,"
    " or hidden @ kernel.T to entropy or label_log_probs"
)


def guard(name: str, *, evaluated: str = "", transposed: str = "") -> Any:
    """The identity, to go through where a derivative is linear: an error where it is evaluated, or transposed.

    JAX itself says of jax.custom_vjp and of lax.while_loop what they lack, but not what to do.
    """
    primitive = Primitive(name)

    def evaluate(x: Any) -> Any:
        if evaluated:
            raise TypeError(IN_CHUNKS.format(evaluated))
        return x

    def transpose(cotangent: Any, _: Any) -> Any:
        if transposed:
            raise TypeError(IN_CHUNKS.format(transposed))
        return [cotangent]

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
    ad.deflinear2(primitive, transpose)
    batching.defvectorized(primitive)

    @jax.custom_jvp
    def identity(x: Any) -> Any:
        return x

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return primals[0], primitive.bind(tangents[0])

    def guarded(tree: Any) -> Any:
        return jax.tree.map(lambda x: identity(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    return guarded


only_transposed = guard("only_transposed", evaluated="forward derivative (jvp)")
only_evaluated = guard("only_evaluated", transposed="reverse derivative of its reverse derivative")


class Static(NamedTuple):
    softcap: float | None
    dtype: Any
    lse_too: bool
    chunk_size: int | None
    entropy: bool = False  # the entropy of each entry, in the place of nll


class Arrays(NamedTuple):
    """Without a derivative."""

    labels: Any
    keep: Any
    class_mask: Any
    answers: Any
    upstream: _rows.Upstream | None


def linear_forward(
    projection: _linear.Projection,
    rows: _rows.Rows,
    *,
    lse_too: bool,
    answers: Any,
    upstream: Callable[[], _rows.Upstream] | None,
    xp: Namespace,
) -> tuple[_rows.Forward, Any]:
    """_linear.forward, with its derivative; `upstream` gives that of the loss, where it does not wait for it."""
    hidden, kernel, bias, chunk_size = projection
    why = why_whole(hidden)
    if why is not None:
        return _linear.from_all_logits(projection, rows, _jax.forward, why, lse_too=lse_too, answers=answers, xp=xp)
    known = None if upstream is None else lax.stop_gradient(upstream())
    static = Static(rows.softcap, rows.dtype, lse_too, chunk_size)
    arrays = Arrays(rows.labels, rows.keep, rows.class_mask, answers, known)
    given = {"hidden": hidden, "kernel": kernel, "bias": bias, "targets": rows.targets}
    nll, dot, lse, right = run(static, *_jax.varying_alike((only_transposed(given), arrays), (given, arrays)))
    return _rows.Forward(nll, dot, lse, None, None), right


def linear_entropy(projection: _linear.Projection, rows: _rows.Rows, *, xp: Namespace) -> Any:
    """_linear.entropy, with its derivative."""
    hidden, kernel, bias, chunk_size = projection
    why = why_whole(hidden)
    if why is not None:
        return _rows.entropy(_linear.with_all_logits(projection, rows, why, xp=xp), xp=xp)
    static = Static(rows.softcap, rows.dtype, False, chunk_size, entropy=True)
    given = {"hidden": hidden, "kernel": kernel, "bias": bias, "targets": None}
    arrays = Arrays(None, rows.keep, rows.class_mask, None, None)
    return run(static, *_jax.varying_alike((only_transposed(given), arrays), (given, arrays)))[0]


WAYS = {"analytic": Way(_jax.forward, linear_forward, _jax.uncovered)}
entropy = _rows.entropy


def small_loss(logits: Array, labels: Any, mask: Any, reduction: str) -> None:
    return None


def value_and_grad(of_values: Callable[..., Any], values: list[Any], has_aux: bool) -> tuple[Any, list[Any]]:
    return jax.value_and_grad(of_values, has_aux=has_aux)(values)


def why_whole(hidden: Any) -> str | None:
    """Why all logits are made at once; None: they are not."""
    if 0 in hidden.shape[:-1]:
        return ""
    if jax.device_count() > 1:
        return f"chunks would gather the rows, which may lie on all of the {jax.device_count()} devices that JAX sees"
    return None if is_static(*hidden.shape) else "the number of rows is a symbol"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_chunks(static: Static, given: Any, arrays: Arrays) -> Any:
    out, right, _ = walked(static, given, arrays._replace(upstream=None), None, ())
    return out.nll, out.dot, out.lse if static.lse_too else None, right


def in_chunks_forward(static: Static, given: Any, arrays: Any) -> Any:
    parts = tuple(name for name, x in given.items() if x is not None and x.perturbed)
    given, arrays = jax.tree.map(lambda x: x.value, (given, arrays), is_leaf=lambda x: hasattr(x, "perturbed"))
    known = arrays.upstream
    out, right, made = walked(static, given, arrays, None, parts if known is not None else ())
    expected = None if known is None else (known.nll, known.dot, known.of_lse(out.lse, xp=xp))
    wanted = dict.fromkeys(parts)  # as keys, since only arrays can be leaves
    per_row = out.lse, out.total, out.shift
    outputs = out.nll, out.dot, out.lse if static.lse_too else None, right
    return outputs, (given, arrays, per_row, expected, made, wanted)


def in_chunks_backward(static: Static, residuals: Any, gradients: Any) -> Any:
    given, arrays, per_row, expected, made, wanted = residuals
    upstream = tuple(None if g is None or type(g) is SymbolicZero else g for g in gradients[:3])
    parts = tuple(wanted)

    start = same = None
    if expected is not None and [k is None for k in expected] == [g is None for g in upstream]:
        factor, same = proportion(expected, upstream)
        # The loop adds to it, in its memory, where it runs at all. lax.cond would hold the gradients twice.
        start = {name: jnp.where(same, made[name] * factor, 0.0).astype(made[name].dtype) for name in parts}
    arrays = arrays._replace(answers=None, upstream=None)
    results = only_evaluated(walked(static, given, arrays, (*per_row, *upstream), parts, start, same)[2])
    return {name: results[name].astype(x.dtype) if name in parts else None for name, x in given.items()}, None


in_chunks.defvjp(in_chunks_forward, in_chunks_backward, symbolic_zeros=True)

# Eagerly, shard_map has no rule for symbolic zeros (NotImplementedError, jax 0.10.2).
run: Any = jax.jit(in_chunks, static_argnums=0)


def proportion(known: Any, given: Any) -> tuple[Any, Any]:
    """A number, and whether the gradients given are the known ones times it, to rounding."""
    k, g = (jnp.concatenate([x.reshape(-1) for x in parts if x is not None]) for parts in (known, given))
    at = jnp.argmax(jnp.abs(k))
    factor = jnp.where(k[at] == 0, 1.0, g[at] / jnp.where(k[at] == 0, 1.0, k[at]))
    within = 16 * jnp.finfo(k.dtype).eps * jnp.abs(factor * k)
    return factor, jnp.all(jnp.abs(g - factor * k) <= within)


@partial(jax.jit, static_argnums=(0, 4))
def walked(
    static: Static,
    given: Any,
    arrays: Arrays,
    per_row: Any,
    parts: tuple[str, ...],
    made: Any = None,
    finished: Any = None,
) -> tuple[Any, Any, Any]:
    """What each entry gives, and the gradients of the parts, in one walk over chunks of kept rows.

    The gradients are those of `per_row` (lse, total, shift, upstream gradients), and then nothing else is made; without
    it those of arrays.upstream. They are added to the ones in `made`; where `finished`, nothing is.
    """
    hidden: Any = given["hidden"]
    targets: Any = given["targets"]
    entries, features, dtype = hidden.shape[:-1], hidden.shape[-1], static.dtype
    kernel: Any = given["kernel"].astype(dtype)
    bias: Any = None if given["bias"] is None else given["bias"].astype(dtype)
    classes, count = kernel.shape[0], math.prod(entries)
    of_entries = targets is not None and targets.ndim == hidden.ndim
    projection = _linear.Projection(hidden, kernel, bias, static.chunk_size)
    on_cpu = jax.default_backend() == "cpu"
    length = _linear.chunk_length(projection, count, dtype.dtype.itemsize, on_cpu=on_cpu, share=1.5)
    # A chunk costs the same however few kept rows are left for it: the last of them go into short ones.
    lengths = (length,) if arrays.keep is None else (length, -(-length // 4))

    def flat(x: Any, *tail: int) -> Any:
        return None if x is None else jnp.broadcast_to(x, (*entries, *tail)).reshape(count, *tail)

    table: dict[str, Any] = {
        "hidden": flat(hidden, features),
        "targets": flat(targets, classes) if of_entries else None,
        "class_mask": flat(arrays.class_mask, classes),
        **{name: flat(getattr(arrays, name)) for name in ("labels", "answers")},
        "upstream": jax.tree.map(flat, arrays.upstream),
        "per_row": jax.tree.map(flat, per_row),
    }
    kept = count
    order = jnp.arange(count)
    if arrays.keep is not None:
        keep = arrays.keep.reshape(count)
        kept = jnp.sum(keep)
        # Kept rows first; what is behind the last of them is read as a row of zeros, and written nowhere.
        order = jnp.where(order < kept, jnp.argsort(~keep, stable=True), count)
    kept = kept if finished is None else jnp.where(finished, 0, kept)
    order = jnp.concatenate([order, jnp.full((-count % length or length,), count, order.dtype)])

    def numbers(asked: Any) -> Any:
        return jnp.zeros(count, dtype) if asked is not None and asked is not False else None

    again = per_row is not None
    out: Any = None
    if static.entropy and not again:
        out = (numbers(True), None, None, None, None)
    elif not again:
        out = (numbers(arrays.labels), numbers(targets), numbers(True), numbers(True), numbers(True))
    right = None if arrays.answers is None else jnp.zeros(count, bool)
    like: dict[str, Any] = {"hidden": hidden, "targets": targets, "kernel": kernel, "bias": bias}
    # Of gradients that wait for a factor a narrow dtype would lose digits, or all.
    waiting = {} if again else {"dtype": dtype}
    made = {n: jnp.zeros_like(like[n], **waiting) for n in parts} if made is None else made
    tails = {"hidden": (features,), **({"targets": (classes,)} if of_entries else {})}
    made = {name: x.reshape(count, *tails[name]) if name in tails else x for name, x in made.items()}

    def chunk(length: int, state: Any) -> Any:
        start, out, right, made = state
        g: Any
        places = lax.dynamic_slice(order, (start,), (length,))
        taken = jax.tree.map(lambda x: x.at[places].get(mode="fill", fill_value=0), table)
        h = taken["hidden"].astype(dtype)
        logits = h @ kernel.T
        if bias is not None:
            # In a row behind the last, a large bias would become 0 * inf.
            logits = logits + jnp.where((places < count)[:, None], bias[None, :], 0.0)
        block_targets = taken["targets"] if of_entries else targets
        rows = _rows.Rows(logits, taken["labels"], block_targets, None, taken["class_mask"], static.softcap, dtype)
        if again:
            lse, total, shift, *g = taken["per_row"]
        else:
            if static.entropy:
                found = _rows.Forward(_rows.entropy(rows, xp=xp), *[None] * 4)
            else:
                found = _jax.forward(rows, lse_too=True, xp=xp)
            out = jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), out, tuple(found))
            if right is not None:
                right = right.at[places].set(_rows.is_largest(rows, taken["answers"], xp=xp), mode="drop")
            lse, total, shift, known = found.lse, found.total, found.shift, taken["upstream"]
            g = None if known is None else (known.nll, known.dot, known.of_lse(lse, xp=xp))
        if parts:
            if static.entropy:
                d_logits, d_targets = _rows.entropy_backward(rows, g[0], xp=xp), None
            else:
                total, shift = _rows.normalised(total, shift, lse, xp=xp)
                d_logits, d_targets = _rows.backward(rows, total, shift, *g, targets_too="targets" in parts, xp=xp)
            made = added(made, places, h, d_logits, d_targets, kernel, of_entries)
        return start + length, out, right, made

    state = (0, *_jax.varying_alike((out, right, made), (given, arrays)))
    for rows_of_chunk in lengths:
        # Half of a long chunk or less, which two or three short ones hold, ends within the order's last long one.
        left = 0 if rows_of_chunk == lengths[-1] else length // 2
        state = lax.while_loop(lambda state, n=left: kept - state[0] > n, partial(chunk, rows_of_chunk), state)
    _, out, right, made = state
    if out is not None:
        out = _rows.Forward(*(None if x is None else x.reshape(entries) for x in out))
    made = {name: x.reshape(like[name].shape) for name, x in made.items()}
    return out, None if right is None else right.reshape(entries), made


def added(made: Any, places: Any, h: Any, d_logits: Any, d_targets: Any, kernel: Any, of_entries: bool) -> Any:
    made = dict(made)
    if "hidden" in made:
        rows = (d_logits @ kernel).astype(made["hidden"].dtype)
        made["hidden"] = made["hidden"].at[places].set(rows, mode="drop")
    if "kernel" in made:
        made["kernel"] = add_product(made["kernel"], d_logits, h)
    if "bias" in made:
        made["bias"] = made["bias"] + xp.long_sum(d_logits, axis=0)
    if "targets" in made:
        if of_entries:
            made["targets"] = made["targets"].at[places].set(d_targets, mode="drop")
        else:
            made["targets"] = made["targets"] + xp.long_sum(d_targets, axis=0)
    return made


def add_product(total: Any, a: Any, b: Any) -> Any:
    """total + a^T b, a tile of its rows at a time; the last tile is moved back to end with the rows."""
    classes = total.shape[0]
    if classes <= TILE:
        return total + a.T @ b

    def tile(i: Any, total: Any) -> Any:
        start = jnp.minimum(i * TILE, classes - TILE)
        columns = lax.dynamic_slice(a, (0, start), (a.shape[0], TILE))
        # Columns that an earlier tile had.
        columns = jnp.where(jnp.arange(TILE) + start >= i * TILE, columns, 0.0)
        rows = lax.dynamic_slice(total, (start, 0), (TILE, total.shape[1])) + columns.T @ b
        return lax.dynamic_update_slice(total, rows, (start, 0))

    return lax.fori_loop(0, -(-classes // TILE), tile, total)
