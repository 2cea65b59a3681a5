"""A function of rows that lie on several devices: each device computes its own, and only sums over rows are exchanged.

XLA partitions an expression by itself, but not a loop whose length is known at run time: it would gather the rows. So
the loop is given to it as one operation, with the axes that may be split, and what a part computes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

# A layout names the axes of an array that may be split, with WHOLE for each other: "e0 e1 ." of hidden states, say.
WHOLE = "."
Over = dict[str, Any]  # the mesh axes that an axis is split over, by its name; {}: none is


def layout_of_rows(entries: int, x: Any, *tail: str) -> str:
    """Of (entries..., tail...)."""
    rest = tail or (WHOLE,) * (x.ndim - entries)
    return " ".join([*(f"e{i}" for i in range(entries)), *rest])


def names_over(over: Over, prefix: str) -> tuple[str, ...]:
    """The mesh axes that the axes of a kind are split over."""
    found: list[str] = []
    for name, axes in over.items():
        if name.startswith(prefix) and axes is not None:
            found += axes if isinstance(axes, tuple) else (axes,)
    return tuple(found)


apply_p = Primitive("maskloss_of_parts")
apply_p.multiple_results = True
apply_p.def_abstract_eval(lambda *_, plain, **__: plain.out_avals)
# A function that was mapped or differentiated is traced as it is.
mlir.register_lowering(apply_p, mlir.lower_fun(lambda *args, split, **_: jaxpr_as_fun(split)(*args)))


def _impl(*args: Any, plain: Any, split: Any) -> Any:
    return jax.jit(lambda *args: apply_p.bind(*args, plain=plain, split=split))(*args)


apply_p.def_impl(_impl)


def _batched(args: Any, axes: Any, *, plain: Any, split: Any) -> Any:
    return jax.vmap(jaxpr_as_fun(plain), axes)(*args), [0] * len(plain.out_avals)


def _differentiated(primals: Any, tangents: Any, *, plain: Any, split: Any) -> Any:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(jaxpr_as_fun(plain), tuple(primals), tangents)


batching.primitive_batchers[apply_p] = _batched
ad.primitive_jvps[apply_p] = _differentiated


linear_p = Primitive("maskloss_linear")
linear_p.def_abstract_eval(lambda *_, plain, **__: plain.out_avals[0])
mlir.register_lowering(linear_p, mlir.lower_fun(lambda *args, plain, **_: jaxpr_as_fun(plain)(*args)[0], False))


def _evaluated(*args: Any, **params: Any) -> Any:
    return jax.jit(partial(linear_p.bind, **params))(*args)


def _mapped(args: Any, axes: Any, *, plain: Any, adjoint: Any) -> Any:
    (*constants, t), (*of_constants, of_t) = args, axes
    if of_t is None:
        size = next(x.shape[axis] for x, axis in zip(constants, of_constants, strict=True) if axis is not None)
        t, of_t = jax.numpy.broadcast_to(t, (size, *t.shape)), 0
    function = jax.vmap(jaxpr_as_fun(plain), (*of_constants, of_t))
    plain = jax.make_jaxpr(function)(*constants, t)
    adjoint = jax.vmap(adjoint, (*of_constants, 0), of_t)
    return linear_p.bind(*constants, t, plain=plain, adjoint=adjoint), 0


def _transposed(g: Any, *args: Any, plain: Any, adjoint: Any) -> Any:
    constants = args[:-1]
    return *[None] * len(constants), adjoint(*constants, ad.instantiate_zeros(g))


linear_p.def_impl(_evaluated)
batching.primitive_batchers[linear_p] = _mapped
ad.primitive_transposes[linear_p] = _transposed
ad.primitive_jvps[linear_p] = lambda primals, tangents, **params: [
    x[0] for x in _differentiated(primals, tangents, plain=params["plain"], split=None)
]


def linear(function: Callable[..., Any], adjoint: Callable[..., Any], constants: Any, t: Any) -> Any:
    """function(*constants, t), linear in t, whose transpose is adjoint(constants, g)."""
    leaves, tree = jax.tree.flatten(constants)

    def plain(*args: Any) -> Any:
        return function(*tree.unflatten(args[:-1]), args[-1])

    def transpose(*args: Any) -> Any:
        return adjoint(tree.unflatten(args[:-1]), args[-1])

    return linear_p.bind(*leaves, t, plain=jax.make_jaxpr(plain)(*leaves, t), adjoint=transpose)


def in_parts(function: Callable[..., Any], layouts: tuple[Any, Any], *args: Any) -> Any:
    """function({}, *args), or where arrays are split function(over, *parts of them); layouts of args and of results."""
    leaves, tree = jax.tree.flatten(args)
    of_args, of_results = (jax.tree.leaves(layout) for layout in layouts)

    def flat(over: Over, *leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(over, *tree.unflatten(leaves)))

    def applied(*leaves: Any) -> list[Any]:
        plain = jax.make_jaxpr(partial(flat, {}))(*leaves)
        split = jax.make_jaxpr(_partitioned(flat, of_args, of_results))(*leaves)
        return apply_p.bind(*leaves, plain=plain, split=split)

    given = [jax.typeof(x).sharding for x in leaves]
    over = over_of(of_args, given)
    if any(axes is not None for axes in over.values()):  # Explicit: inside, the mesh is one that XLA partitions over
        mesh = next(x.mesh for x in given if not x.mesh.empty)
        applied = jax.sharding.auto_axes(applied, out_sharding=shardings(mesh, over, of_results))
    return jax.tree.unflatten(structure_of(partial(function, {}), *args), applied(*leaves))


def structure_of(function: Callable[..., Any], *args: Any) -> Any:
    """Of the results, wherever the arrays lie."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    return jax.tree.structure(jax.eval_shape(function, *shapes))


def over_of(layouts: list[str], given: Iterable[Any]) -> Over:
    """The mesh axes that each axis is split over, from the shardings given: an axis goes as in the first array."""
    over: Over = {}
    for layout, sharding in zip(layouts, given, strict=True):
        names = layout.split()
        spec = () if sharding is None else sharding.spec
        for name, axes in zip(names, (*spec, *[None] * (len(names) - len(spec))), strict=True):
            if name != WHOLE and over.get(name) is None:
                over[name] = axes
    return over


def shardings(mesh: Any, over: Over, layouts: list[str]) -> list[NamedSharding]:
    return [NamedSharding(mesh, PartitionSpec(*map(over.get, layout.split()))) for layout in layouts]


def _partitioned(flat: Callable[..., Any], of_args: list[str], of_results: list[str]) -> Any:
    def whole(*leaves: Any) -> list[Any]:
        return flat({}, *leaves)

    def partition(mesh: Any, args: Any, results: Any) -> Any:
        over = over_of(of_args, [x.sharding for x in args])
        return mesh, partial(flat, over), shardings(mesh, over, of_results), tuple(shardings(mesh, over, of_args))

    function = custom_partitioning(whole)
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
