"""A projection for JAX: chunks of kept rows in a loop of run-time length, with a derivative of its own.

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

from .._arrays.jax import xp
from .._engine import projection as chunked
from .._engine.lanes import Lane
from .._engine.projection import Projection
from .._math.rows import Found, Rows, is_largest, sum_of
from .jax_partition import Over, in_parts, kept_first, layout_of_rows, names_over, varying_alike

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
    lane: Lane
    dtype: Any
    with_lse: bool  # among what is given, and not for the backward alone
    chunk_size: int | None


class Arrays(NamedTuple):
    """Without a derivative."""

    labels: Any
    keep: Any
    class_mask: Any
    answers: Any
    known: Any
    softcap: Any  # 0-d


def of_projection(lane: Lane, projection: Projection, rows: Rows, answers: Any, known: Any) -> Found:
    """What the lane gives of each entry, but what its backward needs alone, and whether its arg-max is its answer."""
    hidden, kernel, bias, chunk_size = projection
    static = Static(lane, rows.dtype, rows.with_lse, chunk_size)
    softcap = None if rows.softcap is None else jnp.asarray(rows.softcap, rows.dtype)
    arrays = Arrays(rows.labels, rows.keep, rows.class_mask, answers, known, softcap)
    given = {"hidden": hidden, "kernel": kernel, "bias": bias, "targets": rows.targets}
    values, right, zero = run(static, *varying_alike((only_transposed(given), arrays), (given, arrays)))
    return Found(lane.function.restored(values), right, None if known is None else zero)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_chunks(static: Static, given: Any, arrays: Arrays) -> Any:
    """Of the lane, whether the arg-max is right, and a 0 whose gradients are those of the loss, as `known` has it."""
    out, right, zero, _ = forward(static, given, arrays._replace(known=None), ())
    return values_of(static, out), right, zero


def values_of(static: Static, out: Any) -> tuple[Any, ...]:
    if not static.with_lse and hasattr(out, "lse"):
        out = out._replace(lse=None)
    return tuple(out[: static.lane.function.differentiable])


def in_chunks_forward(static: Static, given: Any, arrays: Any) -> Any:
    parts = tuple(name for name, x in given.items() if x is not None and x.perturbed)
    function, made = static.lane.function, {}
    given, arrays = jax.tree.map(lambda x: x.value, (given, arrays), is_leaf=lambda x: hasattr(x, "perturbed"))
    if parts:
        out, right, zero, made = forward(static, given, arrays, parts if arrays.known is not None else ())
        values, needed = only_evaluated(values_of(static, out)), function.needed(out)
    else:  # `known` alone, by which there is no derivative; those by what is given are taken further out
        arrays = arrays._replace(known=lax.stop_gradient(arrays.known))
        again: Any = in_chunks(static, given, arrays)
        values, right, zero = again
        shapes: Any = jax.eval_shape(lambda given, arrays: forward(static, given, arrays, ()), given, arrays)
        needed = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), function.needed(shapes[0]))
    # Of one structure whatever is differentiated: under jit, JAX may run a backward with the residuals of a forward
    # that it traced for other arguments (jax 0.10.2). What is not, has no length.
    wanted = {name: jnp.zeros(int(name in parts)) for name in given}
    made = {name: made.get(name, jnp.zeros(0)) for name in given}
    return (values, right, zero), (given, arrays, needed, made, wanted)


def in_chunks_backward(static: Static, residuals: Any, gradients: Any) -> Any:
    given, arrays, out, made, wanted = residuals
    g = tuple(None if x is None or type(x) is SymbolicZero else x for x in gradients[0])
    parts = tuple(name for name, x in wanted.items() if x.shape[0])
    results: dict[str, Any] = {}
    if parts and any(x is not None for x in g):
        results = backward(static, given, arrays._replace(answers=None, known=None), parts, out, g)
    if arrays.known is not None and type(gradients[2]) is not SymbolicZero:
        results = {name: sum_of(results.get(name), made[name] * gradients[2]) for name in parts}
    results = only_evaluated(results)
    return {name: results[name].astype(x.dtype) if name in results else None for name, x in given.items()}, None


in_chunks.defvjp(in_chunks_forward, in_chunks_backward, symbolic_zeros=True)

# Eagerly, shard_map has no rule for symbolic zeros (NotImplementedError, jax 0.10.2).
run: Any = jax.jit(in_chunks, static_argnums=0)


class Chunks(NamedTuple):
    """The kept rows of a projection, a chunk at a time."""

    static: Static
    given: dict[str, Any]  # hidden, kernel, bias, targets and softcap, the kernel in the dtype that it is multiplied in
    table: dict[str, Any]  # what a row has of its own
    order: Any
    kept: Any  # how many
    length: int

    @property
    def entries(self) -> tuple[int, ...]:
        return self.given["hidden"].shape[:-1]

    def of_entries(self) -> bool:
        """Whether each entry has targets of its own."""
        return self.table["targets"] is not None


def is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def multiplies_halves(hidden: Any, kernel: Any, dtype: Any) -> bool:
    """As they are, into float32. (Not those of float16, which does not hold dL/dlogits of a mean over many rows.)"""
    return not is_on_cpu() and hidden.dtype == kernel.dtype == jnp.bfloat16 and dtype.dtype == jnp.float32


def product(a: Any, b: Any, dtype: Any) -> Any:
    return jnp.matmul(a, b, preferred_element_type=dtype)


def chunks_of(static: Static, given: Any, arrays: Arrays, more: Any) -> Chunks:
    """`more` is what else there is of each entry."""
    hidden, targets, dtype = given["hidden"], given["targets"], static.dtype
    entries, count = hidden.shape[:-1], math.prod(hidden.shape[:-1])
    kernel, bias = given["kernel"], given["bias"]
    if not multiplies_halves(hidden, kernel, dtype):
        kernel = kernel.astype(dtype)
    bias = None if bias is None else bias.astype(dtype)
    classes, projection = kernel.shape[0], Projection(hidden, kernel, bias, static.chunk_size)
    length = chunked.chunk_length(projection, count, dtype.dtype.itemsize, on_cpu=is_on_cpu(), share=1.5)

    def flat(x: Any, *tail: int) -> Any:
        return None if x is None else jnp.broadcast_to(x, (*entries, *tail)).reshape(count, *tail)

    table = {
        "hidden": flat(hidden, hidden.shape[-1]),
        "targets": flat(targets, classes) if targets is not None and targets.ndim == hidden.ndim else None,
        "class_mask": flat(arrays.class_mask, classes),
        "labels": flat(arrays.labels),
        "answers": flat(arrays.answers),
        "more": jax.tree.map(flat, more),
    }
    given = {**given, "kernel": kernel, "bias": bias, "softcap": arrays.softcap}
    return Chunks(static, given, table, *kept_first(arrays.keep, count, length), length)


def chunk_of(chunks: Chunks, places: Any) -> tuple[Any, Any, Rows]:
    """What the table has of these places, their hidden states, and their rows."""
    static, kernel, bias = chunks.static, chunks.given["kernel"], chunks.given["bias"]
    taken = jax.tree.map(lambda x: x.at[places].get(mode="fill", fill_value=0), chunks.table)
    hidden = taken["hidden"].astype(kernel.dtype)
    logits = product(hidden, kernel.T, static.dtype)
    if bias is not None:
        # In a row behind the last, a large bias would become 0 * inf.
        logits = logits + jnp.where((places < math.prod(chunks.entries))[:, None], bias[None, :], 0.0)
    targets = taken["targets"] if chunks.of_entries() else chunks.given["targets"]
    # With lse, through which alone the derivative of a backward reaches total.
    rest = None, chunks.given["softcap"], static.dtype, True
    return taken, hidden, Rows(logits, taken["labels"], targets, None, taken["class_mask"], *rest)


def looped(chunks: Chunks, body: Callable[[Any, Any], Any], state: Any) -> Any:
    length, kept = chunks.length, chunks.kept
    # A chunk costs the same however few kept rows are left for it: the last of them go into short ones.
    lengths = (length,) if isinstance(kept, int) else (length, -(-length // 4))

    def chunk(length: int, state: Any) -> Any:
        return state[0] + length, body(lax.dynamic_slice(chunks.order, (state[0],), (length,)), state[1])

    state = (0, varying_alike(state, (chunks.given, chunks.table, chunks.order)))
    for rows_of_chunk in lengths:
        # Half of a long chunk or less, which two or three short ones hold, ends within the order's last long one.
        left = 0 if rows_of_chunk == lengths[-1] else length // 2
        state = lax.while_loop(lambda state, n=left: kept - state[0] > n, partial(chunk, rows_of_chunk), state)
    return state[1]


@partial(jax.jit, static_argnums=(0, 3))
def forward(static: Static, given: Any, arrays: Arrays, parts: tuple[str, ...]) -> tuple[Any, ...]:
    """What each entry gives, whether its arg-max is its answer, a 0, and the gradients of the parts by arrays.known."""
    layouts, entries = layouts_of(given), given["hidden"].ndim - 1
    of_arrays, per_entry = layouts_of_rows(entries, arrays), layout_of_rows(entries, entries)
    of_results = per_entry, per_entry, "", {name: layouts[name] for name in parts}
    return in_parts(partial(forward_of_part, static, parts), ((layouts, of_arrays), of_results), given, arrays)


def layouts_of_rows(entries: int, arrays: Any) -> Any:
    return jax.tree.map(lambda x: layout_of_rows(entries if x.ndim else 0, x.ndim), arrays)


def layouts_of(given: Any) -> dict[str, Any]:
    """The kernel, the bias and targets for all are whole on each device."""
    entries = given["hidden"].ndim - 1
    return {
        name: None if x is None else layout_of_rows(entries if has_rows(given, name) else 0, x.ndim)
        for name, x in given.items()
    }


def has_rows(given: Any, name: str) -> bool:
    """A row for each entry."""
    return name == "hidden" or (name == "targets" and given[name].ndim == given["hidden"].ndim)


def forward_of_part(static: Static, parts: tuple[str, ...], over: Over, given: Any, arrays: Arrays) -> tuple[Any, ...]:
    chunks, lane = chunks_of(static, given, arrays, arrays.known), static.lane
    count = math.prod(chunks.entries)

    def found_at(places: Any) -> tuple[Any, ...]:
        taken, hidden, rows = chunk_of(chunks, places)
        right = None if arrays.answers is None else is_largest(rows, taken["answers"], xp=xp)
        return (lane.forward(rows, xp), right), taken, hidden, rows

    def body(places: Any, state: Any) -> Any:
        (new, taken, hidden, rows), (found, made) = found_at(places), state
        found = jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), found, new)
        if parts:
            g = lane.function.upstream(taken["more"], new[0], xp)
            made = added(chunks, made, places, hidden, rows, new[0], g)
        return found, made

    shapes = jax.eval_shape(lambda places: found_at(places)[0], chunks.order[: chunks.length])
    found = jax.tree.map(lambda x: jnp.zeros(count, x.dtype), shapes)
    # Of gradients that wait for a factor a narrow dtype would lose digits, or all.
    found, made = looped(chunks, body, (found, empty_gradients(chunks, parts, static.dtype)))
    out, right = jax.tree.map(lambda x: x.reshape(chunks.entries), found)
    # A part of the function: where that is mapped it is of each slice, as its gradients are.
    zero = varying_alike(jnp.zeros((), static.dtype), (given, arrays))
    return out, right, zero, in_their_shapes(chunks, made, over)


@partial(jax.jit, static_argnums=(0, 3))
def backward(static: Static, given: Any, arrays: Arrays, parts: tuple[str, ...], out: Any, g: Any) -> dict[str, Any]:
    """The gradients of the parts."""
    layouts, entries = layouts_of(given), given["hidden"].ndim - 1
    of_args = layouts, *layouts_of_rows(entries, (arrays, out, g))
    of_results = {name: layouts[name] for name in parts}
    return in_parts(partial(backward_of_part, static, parts), (of_args, of_results), given, arrays, out, g)


def backward_of_part(
    static: Static, parts: tuple[str, ...], over: Over, given: Any, arrays: Arrays, out: Any, g: Any
) -> dict[str, Any]:
    chunks = chunks_of(static, given, arrays, (out, g))

    def body(places: Any, made: Any) -> Any:
        taken, hidden, rows = chunk_of(chunks, places)
        return added(chunks, made, places, hidden, rows, *taken["more"])

    return in_their_shapes(chunks, looped(chunks, body, empty_gradients(chunks, parts, None)), over)


def empty_gradients(chunks: Chunks, parts: tuple[str, ...], dtype: Any) -> dict[str, Any]:
    """In the dtype given; None: in their own, those of the kernel and the bias, sums, in that of the computation."""
    likes = {**chunks.given, "hidden": chunks.table["hidden"]}
    if chunks.of_entries():
        likes["targets"] = chunks.table["targets"]
    of_sums: dict[str, Any] = dict.fromkeys(("kernel", "bias"), chunks.static.dtype)
    return {name: jnp.zeros_like(likes[name], dtype=dtype or of_sums.get(name)) for name in parts}


def in_their_shapes(chunks: Chunks, gradients: dict[str, Any], over: Over) -> dict[str, Any]:
    """Those of what is whole on each device summed over all."""
    split = names_over(over, "e")
    return {
        name: sum_over(x, split) if split and not has_rows(chunks.given, name) else x.reshape(chunks.given[name].shape)
        for name, x in gradients.items()
    }


def sum_over(x: Any, split: tuple[str, ...]) -> Any:
    if not is_on_cpu():
        return lax.psum(x, split)
    # XLA's all-reduce on a CPU writes to memory of its own (jaxlib 0.10.2), as large as all that it sums at a time.
    return by_tiles(x, lambda rows, _: lax.psum(rows, split))


def added(
    chunks: Chunks, gradients: dict[str, Any], places: Any, hidden: Any, rows: Rows, out: Any, g: Any
) -> dict[str, Any]:
    """The gradients with those of a chunk."""
    function, gradients = chunks.static.lane.function, dict(gradients)
    out = function.restated(out, xp)
    d_logits, d_targets = function.backward(rows, out, g, targets_too="targets" in gradients, xp=xp)
    if "bias" in gradients:
        gradients["bias"] = gradients["bias"] + xp.long_sum(d_logits, axis=0)
    kernel, dtype = chunks.given["kernel"], chunks.static.dtype
    d_logits = d_logits.astype(kernel.dtype)
    if "hidden" in gradients:
        d_hidden = product(d_logits, kernel, dtype).astype(gradients["hidden"].dtype)
        gradients["hidden"] = gradients["hidden"].at[places].set(d_hidden, mode="drop")
    if "kernel" in gradients:
        gradients["kernel"] = add_product(gradients["kernel"], d_logits, hidden)
    if d_targets is not None and chunks.of_entries():
        gradients["targets"] = gradients["targets"].at[places].set(d_targets, mode="drop")
    elif d_targets is not None:
        gradients["targets"] = gradients["targets"] + xp.long_sum(d_targets, axis=0)
    return gradients


def add_product(total: Any, a: Any, b: Any) -> Any:
    """total + a^T b, which XLA for a GPU adds up in place."""
    if not is_on_cpu():
        return total + product(a.T, b, total.dtype)

    def added(rows: Any, start: Any) -> Any:
        return rows + lax.dynamic_slice(a, (0, start), (a.shape[0], rows.shape[0])).T @ b

    return by_tiles(total, added)


def by_tiles(x: Any, function: Callable[[Any, Any], Any]) -> Any:
    """function(rows, where they start) in the place of each tile of rows; the last is moved back, to end with them."""
    length = x.shape[0]
    if length <= TILE:
        return function(x, 0)

    def tile(i: Any, x: Any) -> Any:
        start = jnp.minimum(i * TILE, length - TILE)
        rows = lax.dynamic_slice_in_dim(x, start, TILE)
        # Not those that an earlier tile had.
        is_new = jnp.expand_dims(jnp.arange(TILE) + start >= i * TILE, tuple(range(1, x.ndim)))
        return lax.dynamic_update_slice_in_dim(x, jnp.where(is_new, function(rows, start), rows), start, 0)

    return lax.fori_loop(0, -(-length // TILE), tile, x)
