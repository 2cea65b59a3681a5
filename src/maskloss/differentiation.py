"""value_and_grad: loss and gradient on any backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from ._arguments import check_choice, choose_implementation, describe, fail
from ._arrays import FLOATS, as_array, dtype_name, namespace_of
from ._bindings import binding_of
from ._bindings.eager import value_and_gradients
from ._bindings.reproducible import LOSS, restored
from ._call import Call, Options, check_not_reproducible, of_logits, of_projection
from ._capabilities import LIBRARIES, NO_AUTODIFF
from ._inputs import Given
from ._math.terms import sum_to
from .linear import linear_cross_entropy
from .losses import cross_entropy

Place = int | str
TERMS = ("labels", "weights", "class_weights", "denominator")
COMMON = {"mask", "reduction", "axis", "ignore_index"}  # beside logits and labels
DIFFERENTIABLE = {cross_entropy: ("logits", *TERMS), linear_cross_entropy: ("hidden", "kernel", "bias", *TERMS)}


def value_and_grad(
    loss_function: Callable[..., Any], argnums: Place | tuple[Place, ...] = 0, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """A function that returns the loss and its gradient, on any backend.

    The call ``value_and_grad(f)(*args, **kwargs)`` returns ``(f(*args, **kwargs), gradient)``.

    PyTorch and JAX differentiate any function that returns a scalar. NumPy, CuPy and array-api-strict have no automatic
    differentiation: there the function must be :func:`cross_entropy` or :func:`linear_cross_entropy`, or a
    :func:`functools.partial` of one, whose derivative with respect to logits (or hidden, kernel and bias), weights,
    class_weights, floating labels and denominator is known in closed form.

    Parameters
    ----------
    loss_function : callable
        Returns a 0-d array.
    argnums : int, str or tuple of these
        What to differentiate with respect to: positions, or names of keyword arguments. The first decides
        the library.
    has_aux : bool
        `loss_function` returns ``(loss, aux)``, as with ``with_stats=True``; then so does the value.

    Returns
    -------
    callable
        Returns ``(loss, gradient)``, the gradient of each argument having its shape and dtype (a tuple of them where
        `argnums` is one), or ``((loss, aux), gradient)``.

    Raises
    ------
    TypeError
        Where the gradient cannot be had: another function on a library without automatic differentiation, an argument
        that is no floating array.
    ValueError
        A position or name that the call does not have; a loss that is not 0-d.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> logits = np.log(np.asarray([[0.25, 0.75], [np.nan, 0.5]]))
    >>> labels, mask = np.asarray([1, 0]), np.asarray([True, False])
    >>> loss, gradient = ml.value_and_grad(ml.cross_entropy)(logits, labels, mask=mask)
    >>> print(gradient)  # softmax minus one-hot, and 0 where not kept
    [[ 0.25 -0.25]
     [ 0.    0.  ]]
    """
    check_choice(has_aux=has_aux)
    if not callable(loss_function):
        fail(TypeError, "loss_function", describe(loss_function), "it must be callable")
    places = argnums if isinstance(argnums, tuple) else (argnums,)
    if not places or {*map(type, places)} - {int, str}:
        accepted = "it must be a position, the name of a keyword argument, or a tuple of these"
        fail(TypeError, "argnums", repr(argnums), accepted)

    @functools.wraps(loss_function)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        arguments: dict[Place, Any] = {**dict(enumerate(args)), **kwargs}
        values = {_key(place, args, kwargs): None for place in places}
        if len(values) < len(places):
            fail(ValueError, "argnums", repr(argnums), "it must name each argument once")
        for place, key in zip(places, values, strict=True):
            x: Any = as_array(arguments[key])
            if namespace_of(x) is None or dtype_name(x) not in FLOATS:
                given = f"{place!r}, an argument that is {describe(x)}"
                fail(TypeError, "argnums", given, "it must name a floating array")
            values[key] = x

        def of_values(variables: list[Any]) -> Any:
            called = {**arguments, **dict(zip(values, variables, strict=True))}
            result: Any = loss_function(*map(called.get, range(len(args))), **{k: called[k] for k in kwargs})
            pair = isinstance(cast(object, result), tuple) and len(result) == 2
            loss: Any = result[0] if pair else result
            if pair is not has_aux:
                accepted = f"a loss function that returns {'a pair' if pair else 'no pair'} needs has_aux={pair}"
                fail(ValueError, "has_aux", has_aux, accepted)
            if namespace_of(loss) is None or loss.ndim:
                given = f"one that returns {describe(loss)}"
                fail(ValueError, "loss_function", given, "the loss must be a 0-d array")
            return result

        variables = [*values.values()]
        xp: Any = namespace_of(variables[0])
        differentiated = binding_of(xp).value_and_grad
        if differentiated is None:
            arguments |= values  # without what stands for an array
            named = {name: arguments[name] for name in kwargs}
            given = loss_function, [*values], tuple(map(arguments.get, range(len(args)))), named, has_aux
            result, *gradients = xp.called(_analytic_value_and_grad, given, {})
        else:
            result, gradients = differentiated(
                of_values, variables, has_aux, lambda: _named(loss_function, values, args, kwargs)
            )
        return result, tuple(gradients) if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def _key(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
    if isinstance(place, str):
        if place not in kwargs:
            fail(ValueError, "argnums", repr(place), f"the call has the keyword arguments {sorted(kwargs)}")
        return place
    if not -len(args) <= place < len(args):
        accepted = f"the call has {len(args)} positional arguments; name a keyword one by a str"
        fail(ValueError, "argnums", place, accepted)
    return place % len(args)


def _named(
    function: Any, values: dict[Place, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[str, ...]] | None:
    """A loss of this package, its arguments by their names, and those to differentiate with respect to."""
    function, args, kwargs, held = _unpacked(function, args, kwargs)
    if function not in DIFFERENTIABLE:
        return None
    plain: Any = function.__wrapped__
    order = plain.__code__.co_varnames[: plain.__code__.co_argcount]
    given = {**dict(zip(order, args, strict=False)), **kwargs}
    if len(given) < len(args) + len(kwargs):
        return None
    names = {key if isinstance(key, str) else order[held + key]: x for key, x in values.items()}
    return plain, {**given, **names}, tuple(names)


def _unpacked(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any], int]:
    """The function of nested partials, its arguments, and how many positional ones they hold."""
    held = 0
    while isinstance(function, functools.partial):
        args, kwargs, held = function.args + args, {**function.keywords, **kwargs}, held + len(function.args)
        function = function.func
    return function, args, kwargs, held


def _bound(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument of a call by its name. inspect.signature would be a third of maskloss' import time."""
    plain: Any = function.__wrapped__
    names, defaults = plain.__code__.co_varnames[: plain.__code__.co_argcount], plain.__kwdefaults__
    given = {**dict(zip(names, args, strict=False)), **defaults, **kwargs}
    if len(args) > len(names) or given.keys() != {*names, *defaults} or kwargs.keys() & {*names[: len(args)]}:
        function(*args, **kwargs)  # a TypeError, in Python's own words
    return given


def _call_of(function: Any, given: dict[str, Any]) -> Call:
    get = given.__getitem__
    reducing = map(get, ("reduction", "denominator", "with_stats", "implementation"))
    terms = Given(*map(get, Given._fields)), Options(*map(get, Options._fields))
    if function is cross_entropy:
        return of_logits(given["logits"], given["axis"], *terms, *reducing)
    projection: Any = tuple(map(get, ("hidden", "kernel", "bias", "kernel_layout", "chunk_size")))
    return of_projection(projection, *terms, *reducing)


def _analytic_value_and_grad(
    loss_function: Any, keys: list[Place], args: Any, kwargs: Any, has_aux: bool
) -> tuple[Any, ...]:
    """For the libraries without automatic differentiation: the derivative of the two losses, and of them alone."""
    function, args, kwargs, held = _unpacked(loss_function, args, kwargs)
    if function not in DIFFERENTIABLE:
        fail(TypeError, "loss_function", getattr(function, "__qualname__", repr(function)), NO_AUTODIFF)
    if (
        function is cross_entropy
        and keys == [0]
        and not (held or has_aux)
        and len(args) == 2
        and kwargs.keys() <= COMMON
    ):
        common = binding_of(cast(Any, namespace_of(args[0]))).common_value_and_gradient
        found = None if common is None else common(*args, **kwargs)
        if found is not None:
            return found
    given = _bound(function, args, kwargs)
    order = list(given)
    names = [key if isinstance(key, str) else order[held + key] for key in keys]
    for name in names:
        if name not in DIFFERENTIABLE[function]:
            fail(TypeError, "argnums", repr(name), f"the gradient is known for {', '.join(DIFFERENTIABLE[function])}")
    if given["reduction"] == "none":
        fail(ValueError, "reduction", "'none'", "the gradient needs a loss that is a 0-d array")
    if given["with_stats"] is not has_aux:
        fail(ValueError, "has_aux", has_aux, f"with_stats is {given['with_stats']}, and the two must agree")

    if given["reproducible"] is not False:
        value, made = _reproducible_value_and_gradients(function, given, names)
        return (value, *(made[name] for name in names))
    call = _call_of(function, given)
    inputs, xp = call.inputs, call.inputs.xp
    if choose_implementation(call.implementation, inputs.like) != "analytic":
        accepted = f"it cannot run with {LIBRARIES[xp.name]} arrays: {NO_AUTODIFF}"
        fail(ValueError, "implementation", repr(call.implementation), accepted)
    value, gradients, stats = value_and_gradients(call, frozenset(names))
    results: list[Any] = [(value, stats) if has_aux else value]
    for name in names:
        argument, gradient = given[name], gradients[name]
        if name in ("logits", "labels") and given.get("axis", -1) != -1:
            gradient = xp.moved_axis(gradient, -1, given["axis"])
        if name == "kernel" and given["kernel_layout"] == "dv":
            gradient = xp.permute_dims(gradient, (1, 0))
        gradient = sum_to(gradient, tuple(argument.shape), xp=xp)
        results.append(xp.astype(gradient, argument.dtype, copy=False))
    return tuple(results)


def _reproducible_value_and_gradients(function: Any, given: dict[str, Any], names: list[str]) -> tuple[Any, Any]:
    check_choice(reproducible=given["reproducible"])
    if function is not cross_entropy:
        check_not_reproducible(given["reproducible"])
    results, saved = LOSS.value_of(given)
    one = cast(Any, namespace_of(results[0])).ones_like(results[0])
    cotangents = one, *[None] * (len(results) - 1)
    return restored(results), LOSS.gradients_of(given, saved, cotangents, frozenset(names))
