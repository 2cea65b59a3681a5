"""Calls with JAX's arrays at hand: each through one jitted body, behind the checks that look at values.

Outside of jit each of JAX's functions is a program of its own: 0.85 ms for a loss of 8 x 16, which as one takes 10 us.
What is traced for a compiler, or mapped, is computed as it stands; and so is what may have to be refused, by the checks
that refuse it.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax import core as former_core
from jax.extend import core

from .._arguments import Checked, Like, check_axis, check_choice, check_number, to_mask
from .._arrays import as_array
from .._arrays.jax import xp
from .._arrays.numpy import xp as of_numpy
from .._call import of_labels
from .._inputs import Given, prepare

# Whose Python numbers are no part of the program, as arrays and as numbers: another one needs no other program.
AS_ARRAYS, NUMBERS = ("labels", "weights", "denominator"), ("label_smoothing", "z_loss", "softcap")
STATIC = str, bool, int, float, tuple, type(None)
REFUSALS = TypeError, ValueError, NotImplementedError, OverflowError

# What the check of labels, or of a mask, asks for.
ABOUT = "labels", "mask", "weights", "class_mask", "ignore_index", "validate"

# Of a tracer of derivatives, its value: in jax.core before it was in jax.extend.core.
value_of: Any = getattr(core, "concrete_or_error", None) or vars(former_core)["concrete_or_error"]


class Prepared(NamedTuple):
    function: Callable[..., Any]
    options: tuple[tuple[str, type, Any], ...]  # with their types: 1 equals True
    arrays: dict[str, Any]
    numbers: dict[str, float]


def staged() -> Any:
    raise NotImplementedError


# To tell a program that is being made from what is computed now: its abstract value is asked for in the former alone.
evaluated_p = core.Primitive("maskloss_evaluated")
evaluated_p.def_impl(lambda: True)
evaluated_p.def_abstract_eval(staged)


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        prepared = at_hand(function, args, kwargs)
        if prepared is not None:
            return body(*prepared)
    except REFUSALS:
        pass
    return function(*args, **kwargs)


def value_and_grad(loss: tuple[Any, dict[str, Any], tuple[str, ...]], has_aux: bool) -> tuple[Any, list[Any]] | None:
    """Of a loss of this package, its arguments, and the names of those to differentiate by; None: by other means."""
    function, given, names = loss
    if given.get("with_stats", False) is not has_aux or given.get("reduction") == "none":
        return None
    try:
        prepared = at_hand(function, (), given)
        if prepared is None or any(map(xp.is_tracer, prepared.arrays.values())):
            return None
        return body_with_gradients(*prepared, names, has_aux)
    except REFUSALS:
        return None


def run(function: Callable[..., Any], options: Any, arrays: dict[str, Any], numbers: dict[str, Any]) -> Any:
    checked = {name: Checked(x) for name, x in numbers.items()}
    return function(**{name: value for name, _, value in options}, **arrays, **checked)


body: Any = jax.jit(run, static_argnums=(0, 1))


@partial(jax.jit, static_argnums=(0, 1, 4, 5))
def body_with_gradients(
    function: Any, options: Any, arrays: dict[str, Any], numbers: dict[str, Any], names: tuple[str, ...], has_aux: bool
) -> Any:
    def of_variables(variables: list[Any]) -> Any:
        return run(function, options, {**arrays, **dict(zip(names, variables, strict=True))}, numbers)

    return jax.value_and_grad(of_variables, has_aux=has_aux)([arrays[name] for name in names])


def at_hand(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared | None:
    """The call, whose values were checked; None, or an error: there is a program being made, or what to refuse."""
    code = function.__code__
    given: dict[str, Any] = {**dict(zip(code.co_varnames, args, strict=False)), **kwargs}
    if len(args) > code.co_argcount or len(given) < len(args) + len(kwargs):
        return None
    if given.pop("reproducible", False) is not False or given.pop("class_shard", None) is not None:
        return None
    validate = given.pop("validate", "auto")
    arrays: dict[str, Any] = {}
    numbers: dict[str, float] = {}
    options: dict[str, Any] = {"validate": False} if "validate" in code.co_varnames else {}
    for name, x in given.items():
        kind: Any = type(x)
        if kind not in STATIC:
            x = as_array(x)
            if not isinstance(x, jax.Array) and not (kind is np.ndarray and x.dtype.isnative):
                return None  # of the other byte order jit would take the bytes as they are (jax 0.10.2)
            arrays[name] = x
        elif kind in (int, float) and name in AS_ARRAYS:
            arrays[name] = np.asarray(x) if name == "labels" else x
        elif kind in (int, float) and name in NUMBERS and x not in (0, 1):  # by which it branches
            numbers[name] = x
        elif x != x or (kind is tuple and {*map(type, cast(Any, x))} - {int}):
            return None
        else:
            options[name] = x
    first = code.co_varnames[0]
    if not isinstance(arrays.get(first), jax.Array) or evaluated_p.bind() is not True:
        return None
    values = {name: value_of(None, x) if xp.is_tracer(x) else x for name, x in arrays.items()}
    if not all(type(x) in (int, float) or isinstance(x, jax.Array | np.ndarray | np.generic) for x in values.values()):
        return None  # a Python number that is differentiated
    if first == "labels" and not any(hasattr(x, "dtype") and x.dtype.kind == "f" for x in arrays.values()):
        return None  # a number decides the dtype by itself
    if not are_good(first, values, numbers, {**options, "validate": validate}):
        return None
    return Prepared(function, tuple([(name, type(x), x) for name, x in sorted(options.items())]), arrays, numbers)


def are_good(first: str, values: dict[str, Any], numbers: dict[str, float], options: dict[str, Any]) -> bool:
    """Whether nothing is to be refused for its value, of what may be looked at: by the same checks, of NumPy's arrays.

    What they refuse for all else, the body refuses as well.
    """
    x, validate = values[first], options["validate"]
    in_its_place = np.broadcast_to(np.zeros((), x.dtype), x.shape)
    like = Like(first, in_its_place, of_numpy, of_numpy.float64 if x.dtype == np.float64 else of_numpy.float32)
    for name, number in {**values, **numbers}.items():
        if type(number) in (int, float):
            check_number(name, number, like.dtype, of_numpy)
    if not all(is_held(x) for x in values.values() if type(x) is np.ndarray):
        return False
    arrays = {name: x for name, x in values.items() if hasattr(x, "dtype")}
    integers = [name for name in ("labels", "mask") if name in arrays and arrays[name].dtype.kind in "iu"]
    if validate is False or not integers:
        return check_choice(validate=validate) is None
    if not all(type(x) is np.ndarray or xp.reads_without_sync(x) for x in arrays.values()):
        return validate == "auto"
    seen = {name: np.asarray(x) for name, x in arrays.items() if name in ("labels", "mask", "weights", "class_mask")}
    if "labels" not in integers and first != "labels":
        seen.pop("labels", None)
    given = Given(**{name: x for name, x in {**values, **options, **seen}.items() if name in ABOUT})
    if first == "labels":
        of_labels(seen["labels"], options.get("axis", -1), options.get("classes"), given, "mean")
    elif first == "logits":
        prepare(like, None, x.shape, check_axis(options.get("axis", -1), x.ndim), "", given)
    elif first == "hidden":
        classes = values["kernel"].shape[options.get("kernel_layout", "vd").index("v")]
        prepare(like, None, (*x.shape[:-1], classes), x.ndim - 1, "", given)
    else:
        to_mask(given.mask, x.shape, "", like)
    return True


def is_held(x: Any) -> bool:
    """By an array of JAX, which without x64 wraps."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize < 8 or xp.index_dtype() == np.int64 or not x.size:
        return True
    return int(x.min()) >= -(2**31) and int(x.max()) < 2**31
