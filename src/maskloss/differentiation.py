"""value_and_grad: loss and gradient on any backend."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any

from ._capabilities import LIBRARIES, NO_AUTODIFF
from ._compat import Array, dtype_name, library_of, moved_axis, quiet
from ._entries import sum_to, value_and_gradients
from ._inputs import (
    FLOATS,
    Inputs,
    check_array,
    check_choice,
    check_reduction,
    choose_implementation,
    describe,
    fail,
    prepare,
)
from .losses import check_options, cross_entropy, denominator_of

Argument = int | str

_PER_ENTRY = ("logits", "labels", "mask", "weights", "class_weights", "class_mask", "ignore_index", "axis", "validate")


def value_and_grad(
    loss_function: Callable[..., Any], argnums: Argument | tuple[Argument, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns the loss and its gradient, on any backend.

    The call ``value_and_grad(f)(*args, **kwargs)`` returns ``(f(*args, **kwargs), gradient)``.

    PyTorch and JAX differentiate any function that returns a scalar (JAX traces it, so that labels are not checked but
    answer NaN). NumPy, CuPy and array-api-strict have no automatic differentiation: there the function must be
    :func:`cross_entropy`, or a :func:`functools.partial` of it, whose derivative with respect to logits, weights,
    class_weights, floating labels and denominator is known in closed form.

    Parameters
    ----------
    loss_function : callable
        Returns a 0-d array.
    argnums : int, str or tuple of these
        What to differentiate with respect to: positions, or names of keyword arguments. The first of them that is an
        array decides the library.
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
    check_choice("has_aux", has_aux, (True, False))
    places = argnums if isinstance(argnums, tuple) else (argnums,)
    if not places or not all(isinstance(p, str | int) and not isinstance(p, bool) for p in places):
        fail(
            TypeError,
            "argnums",
            repr(argnums),
            "it must be a position, the name of a keyword argument, or a tuple of these",
        )

    @functools.wraps(loss_function)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        values = [_argument(place, args, kwargs) for place in places]
        library = next((name for name in map(library_of, values) if name), None)
        if library is None:
            fail(TypeError, "argnums", repr(argnums), f"it must name an array; it names {describe(values[0])}")
        differentiate = {"torch": _torch_gradients, "jax": _jax_gradients}.get(library, _analytic_gradients)
        value, gradients = differentiate(loss_function, places, values, args, kwargs, has_aux)
        return value, gradients if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def _argument(place: Argument, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(place, str):
        if place not in kwargs:
            fail(ValueError, "argnums", repr(place), f"the call has the keyword arguments {sorted(kwargs)}")
        return kwargs[place]
    if not -len(args) <= place < len(args):
        fail(
            ValueError,
            "argnums",
            place,
            f"the call has {len(args)} positional arguments; a keyword one is named as a str",
        )
    return args[place]


def _called(
    loss_function: Callable[..., Any],
    places: tuple[Argument, ...],
    values: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    positional, keyword = list(args), dict(kwargs)
    for place, value in zip(places, values, strict=True):
        if isinstance(place, str):
            keyword[place] = value
        else:
            positional[operator.index(place)] = value
    return loss_function(*positional, **keyword)


def _torch_gradients(
    loss_function: Any, places: Any, values: list[Any], args: Any, kwargs: Any, has_aux: bool
) -> tuple[Any, tuple[Any, ...]]:
    torch = sys.modules["torch"]
    for place, value in zip(places, values, strict=True):
        _check_differentiable(place, value)
    variables = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        result = _called(loss_function, places, variables, args, kwargs)
        loss = result[0] if has_aux else result
        _check_scalar(loss)
        gradients = torch.autograd.grad(loss, variables, allow_unused=True)
    filled = tuple(torch.zeros_like(v) if g is None else g for v, g in zip(variables, gradients, strict=True))
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result), filled


def _jax_gradients(
    loss_function: Any, places: Any, values: list[Any], args: Any, kwargs: Any, has_aux: bool
) -> tuple[Any, tuple[Any, ...]]:
    jax = sys.modules["jax"]
    for place, value in zip(places, values, strict=True):
        _check_differentiable(place, value)

    def of_values(variables: list[Any]) -> Any:
        result = _called(loss_function, places, variables, args, kwargs)
        _check_scalar(result[0] if has_aux else result)
        return result

    value, gradients = jax.value_and_grad(of_values, has_aux=has_aux)(values)
    return value, tuple(gradients)


def _check_differentiable(place: Argument, value: Any) -> None:
    if library_of(value) is None or dtype_name(value) not in FLOATS:
        fail(
            TypeError,
            "argnums",
            repr(place),
            f"it must name a floating array to differentiate; that one is {describe(value)}",
        )


def _check_scalar(loss: Any) -> None:
    if library_of(loss) is None or loss.ndim:
        fail(
            ValueError,
            "loss_function",
            f"one that returns {describe(loss)}",
            "its loss must be a 0-d array (has_aux for a pair)",
        )


def _analytic_gradients(
    loss_function: Any, places: Any, values: list[Any], args: Any, kwargs: Any, has_aux: bool
) -> tuple[Any, tuple[Any, ...]]:
    function, keywords = loss_function, kwargs
    held = 0
    while isinstance(function, functools.partial):
        args, held, keywords = function.args + args, held + len(function.args), {**function.keywords, **keywords}
        function = function.func
    if function is not cross_entropy:
        library = LIBRARIES[check_array("argnums", values[0])]
        name = getattr(function, "__qualname__", repr(function))
        fail(TypeError, "loss_function", name, f"with {library} arrays {NO_AUTODIFF}")
    call = inspect.signature(cross_entropy).bind(*args, **keywords)
    call.apply_defaults()
    positional = list(call.arguments)[held : len(args)]
    names = [place if isinstance(place, str) else positional[place] for place in places]
    return _cross_entropy_gradients(call.arguments, names, has_aux)


def _cross_entropy_gradients(given: dict[str, Any], names: list[str], has_aux: bool) -> tuple[Any, tuple[Any, ...]]:
    reduction, denominator = given["reduction"], given["denominator"]
    check_reduction(reduction, denominator)
    options = check_options(given["label_smoothing"], given["z_loss"], given["softcap"])
    if reduction == "none":
        fail(ValueError, "reduction", "'none'", "the gradient needs a loss that is 0-d; name another")
    if has_aux is not given["with_stats"]:
        fail(ValueError, "has_aux", has_aux, f"with_stats is {given['with_stats']}; the two must agree")
    for name in names:
        if (
            name not in ("logits", "labels", "weights", "class_weights", "denominator")
            or library_of(given[name]) is None
        ):
            differentiable = "logits, weights, class_weights, floating labels, denominator, given as arrays"
            fail(TypeError, "argnums", repr(name), f"the gradient is known with respect to {differentiable}")
        _check_differentiable(name, given[name])
    inputs = prepare(**{name: given[name] for name in _PER_ENTRY})
    if choose_implementation(given["implementation"], inputs.library, False) != "analytic":
        fail(
            ValueError,
            "implementation",
            repr(given["implementation"]),
            f"with {LIBRARIES[inputs.library]} arrays {NO_AUTODIFF}",
        )
    divisor = denominator_of(denominator, given["logits"], inputs)
    with quiet(inputs.library):
        value, gradients, stats = value_and_gradients(inputs, options, reduction, divisor, frozenset(names))
        results = tuple(_restored(gradients[name], name, given, inputs) for name in names)
    return ((value, stats) if has_aux else value), results


def _restored(gradient: Array, name: str, given: dict[str, Any], inputs: Inputs) -> Array:
    """In the argument's own axis order, shape and dtype."""
    xp, argument = inputs.xp, given[name]
    if name in ("logits", "labels"):
        gradient = moved_axis(gradient, -1, given["axis"], xp=xp)
    return xp.astype(sum_to(gradient, tuple(argument.shape), inputs), argument.dtype, copy=False)
