"""value_and_grad: loss and gradient on any backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from . import _inputs
from ._arrays import FLOATS, as_array, dtype_name, namespace_of, on_arrays
from ._bindings import binding_of
from ._bindings.eager import value_and_gradients
from ._call import of_logits, of_projection
from ._capabilities import LIBRARIES, NO_AUTODIFF
from ._inputs import fail
from ._math.terms import sum_to
from .linear import linear_cross_entropy
from .losses import cross_entropy

Place = int | str
OPTIONS = ("labels", "weights", "class_weights", "denominator")
DIFFERENTIABLE = {cross_entropy: ("logits", *OPTIONS), linear_cross_entropy: ("hidden", "kernel", "bias", *OPTIONS)}


def value_and_grad(
    loss_function: Callable[..., Any], argnums: Place | tuple[Place, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
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
    >>> loss, gradient = ml.value_and_grad(ml.cross_entropy)(logits, np.asarray([1, 0]), mask=np.asarray([True, False]))
    >>> print(gradient)  # softmax minus one-hot, and 0 where not kept
    [[ 0.25 -0.25]
     [ 0.    0.  ]]
    """
    _inputs.check_choice("has_aux", has_aux, (True, False))
    if not callable(loss_function):
        fail(TypeError, "loss_function", _inputs.describe(loss_function), "it must be callable")
    places = argnums if isinstance(argnums, tuple) else (argnums,)
    if not places or not all(type(place) in (int, str) for place in places):
        accepted = "it must be a position, the name of a keyword argument, or a tuple of these"
        fail(TypeError, "argnums", repr(argnums), accepted)

    @functools.wraps(loss_function)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        keys = [_key(place, args, kwargs) for place in places]
        if len(set(keys)) < len(keys):
            fail(ValueError, "argnums", repr(argnums), "it must name each argument once")
        arguments: dict[Place, Any] = {**dict(enumerate(args)), **kwargs}
        values = [as_array(arguments[key]) for key in keys]
        for place, value in zip(places, values, strict=True):
            if namespace_of(value) is None or dtype_name(value) not in FLOATS:
                given = f"{place!r}, an argument that is {_inputs.describe(value)}"
                fail(TypeError, "argnums", given, "it must name a floating array")

        def of_values(variables: list[Any]) -> Any:
            called = {**arguments, **dict(zip(keys, variables, strict=True))}
            result = loss_function(*(called[i] for i in range(len(args))), **{name: called[name] for name in kwargs})
            _check_scalar(result, has_aux)
            return result

        xp: Any = namespace_of(values[0])
        differentiated = binding_of(xp).value_and_grad
        if differentiated is None:
            result, gradients = _analytic_value_and_grad(values[0], loss_function, keys, args, kwargs, has_aux)
        else:
            result, gradients = differentiated(of_values, values, has_aux)
        return result, tuple(gradients) if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def _key(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
    if isinstance(place, str):
        if place not in kwargs:
            fail(ValueError, "argnums", repr(place), f"the call has the keyword arguments {sorted(kwargs)}")
        return place
    if not -len(args) <= place < len(args):
        fail(
            ValueError, "argnums", place, f"the call has {len(args)} positional arguments; name a keyword one by a str"
        )
    return place % len(args)


def _check_scalar(result: Any, has_aux: bool) -> None:
    items: tuple[Any, ...] = cast("tuple[Any, ...]", result) if isinstance(result, tuple) else ()
    pair = len(items) == 2
    loss: Any = items[0] if pair else cast(object, result)
    if pair is not has_aux:
        accepted = f"a loss function that returns {'a pair' if pair else 'no pair'} needs has_aux={pair}"
        fail(ValueError, "has_aux", has_aux, accepted)
    if namespace_of(loss) is None or loss.ndim:
        fail(ValueError, "loss_function", f"one that returns {_inputs.describe(loss)}", "the loss must be a 0-d array")


@functools.cache
def _signature(function: Any) -> Any:
    import inspect  # a third of maskloss' import time

    return inspect.signature(function)


@on_arrays
def _analytic_value_and_grad(
    _: Any, loss_function: Any, keys: list[Place], args: Any, kwargs: Any, has_aux: bool
) -> tuple[Any, tuple[Any, ...]]:
    """For the libraries without automatic differentiation: the derivative of the two losses, and of them alone."""
    function, held = loss_function, 0
    while isinstance(function, functools.partial):
        args, kwargs, held = function.args + args, {**function.keywords, **kwargs}, held + len(function.args)
        function = function.func
    if function not in DIFFERENTIABLE:
        fail(TypeError, "loss_function", getattr(function, "__qualname__", repr(function)), NO_AUTODIFF)
    call = _signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    names = [key if isinstance(key, str) else list(given)[held + key] for key in keys]
    for name in names:
        if name not in DIFFERENTIABLE[function]:
            fail(TypeError, "argnums", repr(name), f"the gradient is known for {', '.join(DIFFERENTIABLE[function])}")
    if given["reduction"] == "none":
        fail(ValueError, "reduction", "'none'", "the gradient needs a loss that is a 0-d array")
    if given["with_stats"] is not has_aux:
        fail(ValueError, "has_aux", has_aux, f"with_stats is {given['with_stats']}, and the two must agree")

    checked = (of_projection if function is linear_cross_entropy else of_logits)(**given)
    inputs = checked.inputs
    if _inputs.choose_implementation(checked.implementation, inputs.like) != "analytic":
        accepted = f"it cannot run with {LIBRARIES[inputs.xp.name]} arrays: {NO_AUTODIFF}"
        fail(ValueError, "implementation", repr(checked.implementation), accepted)
    value, gradients, stats = value_and_gradients(checked, frozenset(names))
    results: list[Any] = []
    for name in names:
        argument: Any = given[name]
        gradient = gradients[name]
        if name in ("logits", "labels"):
            gradient = inputs.xp.moved_axis(gradient, -1, given.get("axis", -1))
        if name == "kernel" and given["kernel_layout"] == "dv":
            gradient = inputs.xp.permute_dims(gradient, (1, 0))
        gradient = sum_to(gradient, _inputs.shape_of(argument), inputs)
        results.append(inputs.xp.astype(gradient, argument.dtype, copy=False))
    return ((value, stats) if has_aux else value), tuple(results)
