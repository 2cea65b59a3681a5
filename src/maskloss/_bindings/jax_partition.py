"""A function of rows that lie on several devices: each device computes its own, and only sums over rows are exchanged.

XLA partitions an expression by itself, but not a loop whose length is known at run time: it would gather the rows. So
the loop is given to it as one operation, with the axes that may be split, and what a part computes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.extend.source_info_util import register_exclusion
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from .._arrays.jax import xp

# What a device computes is compiled apart, and its source lines are looked up in the table of the whole program, where
# XLA may then go round for ever (PropagateCallMetadata, jaxlib 0.10.2). So lines of this package are left out.
register_exclusion(str(Path(__file__).parents[1]))

# A layout names the axes of an array that may be split, with WHOLE for each other: "e0 e1 ." of hidden states, say.
WHOLE = "."
Over = dict[str, Any]  # the mesh axes that an axis is split over, by its name; {}: none is


def layout_of_rows(entries: int, ndim: int, last: str = WHOLE) -> str:
    """Of (entries..., more...), the last axis under a name of its own."""
    return " ".join([*(f"e{i}" for i in range(entries)), *[WHOLE] * (ndim - entries - 1), *[last] * (ndim > entries)])


def names_over(over: Over, prefix: str) -> tuple[str, ...]:
    """The mesh axes that the axes of a kind are split over."""
    found: list[str] = []
    for name, axes in over.items():
        if name.startswith(prefix) and axes is not None:
            found += axes if isinstance(axes, tuple) else (axes,)
    return tuple(found)


def spec_of(x: Any) -> tuple[Any, ...]:
    """The mesh axes that each axis of an array is split over, where these are Explicit."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return (*spec, *[None] * (x.ndim - len(spec)))


apply_p = Primitive("maskloss_of_parts")
apply_p.multiple_results = True
apply_p.def_abstract_eval(lambda *_, plain, **__: plain.out_avals)
# A function that was mapped or differentiated is traced as it is.
mlir.register_lowering(apply_p, mlir.lower_fun(lambda *args, split, **_: jaxpr_as_fun(split)(*args)))


def _evaluated(primitive: Primitive, *args: Any, **params: Any) -> Any:
    return jax.jit(partial(primitive.bind, **params))(*args)


def _batched(args: Any, axes: Any, *, plain: Any, **_: Any) -> Any:
    function, count = jax.vmap(jaxpr_as_fun(plain), axes), len(plain.out_avals)
    lies = [(x, spec_of(x)[i]) for x, i in zip(args, axes, strict=True) if i is not None]
    split = next(((x, over) for x, over in lies if over is not None), None)
    if split is not None:
        x, over = split
        sharding = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(over))
        function = jax.sharding.auto_axes(function, out_sharding=[sharding] * count)
    return function(*args), [0] * count


def _differentiated(primals: Any, tangents: Any, *, plain: Any, **_: Any) -> Any:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(jaxpr_as_fun(plain), tuple(primals), tangents)


apply_p.def_impl(partial(_evaluated, apply_p))
batching.primitive_batchers[apply_p] = _batched
ad.primitive_jvps[apply_p] = _differentiated


linear_p = Primitive("maskloss_linear")
linear_p.multiple_results = True
linear_p.def_abstract_eval(lambda *_, plain, **__: plain.out_avals)
mlir.register_lowering(linear_p, mlir.lower_fun(lambda *args, plain, **_: jaxpr_as_fun(plain)(*args)))


def _mapped(args: Any, axes: Any, *, plain: Any, adjoint: Any, constants: int) -> Any:
    args, axes = list(args), list(axes)
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    for i in range(constants, len(args)):  # as each has a gradient of its own
        args[i] = (
            jnp.broadcast_to(args[i], (size, *args[i].shape)) if axes[i] is None else jnp.moveaxis(args[i], axes[i], 0)
        )
        axes[i] = 0
    mapped = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(plain), axes))(*args)
    adjoint = jax.vmap(adjoint, (*axes[:constants], *[0] * len(plain.out_avals)))
    return linear_p.bind(*args, plain=mapped, adjoint=adjoint, constants=constants), [0] * len(plain.out_avals)


def _transposed(gradients: Any, *args: Any, plain: Any, adjoint: Any, constants: int) -> Any:
    return *[None] * constants, *adjoint(*args[:constants], *map(ad.instantiate_zeros, gradients))


linear_p.def_impl(partial(_evaluated, linear_p))
batching.primitive_batchers[linear_p] = _mapped
ad.primitive_transposes[linear_p] = _transposed
ad.primitive_jvps[linear_p] = _differentiated


def linear(function: Callable[..., Any], adjoint: Callable[..., Any], constants: Any, *ts: Any) -> Any:
    """A list of arrays, function(*constants, *ts), linear in ts; adjoint(constants, *gradients) lists those of ts."""
    leaves, tree = jax.tree.flatten(constants)

    def plain(*args: Any) -> Any:
        return function(*tree.unflatten(args[: len(leaves)]), *args[len(leaves) :])

    def transpose(*args: Any) -> Any:
        return adjoint(tree.unflatten(args[: len(leaves)]), *args[len(leaves) :])

    made = jax.make_jaxpr(plain)(*leaves, *ts)
    return linear_p.bind(*leaves, *ts, plain=made, adjoint=transpose, constants=len(leaves))


def in_parts(function: Callable[..., Any], layouts: tuple[Any, Any], *args: Any) -> Any:
    """function({}, *args), or where arrays are split function(over, *parts of them).

    Layouts of args and of results: as either, or one for all that it stands in the place of.
    """
    leaves, tree = jax.tree.flatten(args)
    # Of the shapes alone, wherever the arrays lie.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    shapes = shapes, jax.eval_shape(partial(function, {}), *shapes)
    of_args, of_results = (
        jax.tree.leaves(jax.tree.map(lambda layout, of: jax.tree.map(lambda _: layout, of), *pair))
        for pair in zip(layouts, shapes, strict=True)
    )

    def flat(over: Over, *leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(over, *tree.unflatten(leaves)))

    def bound(*leaves: Any) -> list[Any]:
        plain = jax.make_jaxpr(partial(flat, {}))(*leaves)
        split = jax.make_jaxpr(_partitioned(flat, jaxpr_as_fun(plain), of_args, of_results))(*leaves)
        return apply_p.bind(*leaves, plain=plain, split=split)

    applied: Any = bound
    given = [jax.typeof(x).sharding for x in leaves]
    over = over_of(of_args, given)
    if any(axes is not None for axes in over.values()):  # Explicit: inside, the mesh is one that XLA partitions over
        mesh = next(x.mesh for x in given if not x.mesh.empty)
        applied = jax.sharding.auto_axes(bound, out_sharding=shardings(mesh, over, of_results))
    return jax.tree.unflatten(jax.tree.structure(shapes[1]), applied(*leaves))


def over_of(layouts: list[str], given: Iterable[Any]) -> Over:
    """The mesh axes that each axis is split over, from the shardings given: it goes as in the first array that is."""
    over: Over = {}
    for layout, sharding in zip(layouts, given, strict=True):
        names = layout.split()
        spec = () if sharding is None else sharding.spec
        for name, axes in zip(names, (*spec, *[None] * (len(names) - len(spec))), strict=True):
            if name != WHOLE and over.get(name) is None:
                over[name] = None if axes in over.values() else axes
    return over


def shardings(mesh: Any, over: Over, layouts: list[str]) -> list[NamedSharding]:
    return [NamedSharding(mesh, PartitionSpec(*map(over.get, layout.split()))) for layout in layouts]


def _partitioned(flat: Callable[..., Any], whole: Callable[..., Any], of_args: list[str], of_results: list[str]) -> Any:
    """`whole`, or flat(over, *parts) on each device."""

    def partition(mesh: Any, args: Any, results: Any) -> Any:
        over = over_of(of_args, [x.sharding for x in args])
        return mesh, partial(flat, over), shardings(mesh, over, of_results), tuple(shardings(mesh, over, of_args))

    function = custom_partitioning(lambda *leaves: whole(*leaves))
    # Every axis that is not to be split has a name of its own.
    count = iter(range(10**6))
    ins, outs = (
        [" ".join(f"whole{next(count)}" if name == WHOLE else name for name in layout.split()) for layout in layouts]
        for layouts in (of_args, of_results)
    )
    names = {name for layout in (*ins, *outs) for name in layout.split()}
    function.def_partition(
        partition,
        sharding_rule=f"{', '.join(ins)} -> {', '.join(outs)}",
        need_replication_factors=tuple(sorted(name for name in names if name.startswith("whole"))),
    )
    return function


def kept_first(keep: Any, count: int, length: int) -> tuple[Any, Any]:
    """The places of the kept rows, then up to whole blocks the place behind the last row, and how many are kept.

    That place is read clipped, or as zeros, and written nowhere.
    """
    order, kept = jnp.arange(count), count
    if keep is not None:
        keep = keep.reshape(count)
        kept = jnp.sum(keep)
        order = jnp.where(order < kept, jnp.argsort(~keep, stable=True), count)
    return jnp.concatenate([order, jnp.full((-count % length or length,), count, order.dtype)]), kept


def varying_alike(made: Any, given: Any) -> Any:
    """The arrays made, varying over the mesh axes that those given vary over: within shard_map, a loop's carry must.

    By a 0 that varies over all of them, since what JAX lets ask for the axes has another name in each version.
    """
    zeros = [lax.full_like(x, 0, jnp.int32, ()) for x in jax.tree.leaves(given) if xp.is_tracer(x)]
    if not zeros:
        return made
    zero = functools.reduce(lax.add, zeros)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), made)
