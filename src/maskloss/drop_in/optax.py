"""Optax's softmax losses under their names and signatures: ``from maskloss.drop_in import optax``.

Only the losses: beside ``optax.adam`` import them by their names.

One loss per entry, of JAX arrays, inside and outside of jit, grad and vmap. Optax itself is not needed. `quirks` is the
one argument more: ``"theirs"`` answers as Optax does also where :doc:`the table </drop_in>` says that this does not.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import broadcasts, check_axis, describe, fail
from ..exponentials import masked_logsumexp
from ..losses import cross_entropy
from ._quirks import Quirks, are_theirs

__all__ = ["safe_softmax_cross_entropy", "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"]
Axes = tuple[int, ...]
AXIS = "it must be an int or a tuple of ints"


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: int | Axes = -1, where: Any = None, *, quirks: Quirks = None
) -> jax.Array:
    r"""Softmax cross-entropy of class indices, entry by entry: :math:`\mathrm{lse} - x_y`.

    Parameters
    ----------
    logits : array, shape (..., C), real floating
        The classes lie along `axis`.
    labels : array of integers
        In the entries' shape, or one that broadcasts with it; a flat index where `axis` is a tuple.
    axis : int or tuple of ints
        The class axis, or several, which count as one.
    where : array of bool, optional
        Of the entries' rank: False, and the entry's loss is 0. Of the logits' rank: False, and the class does not
        exist.
    quirks : "theirs", optional
        Answer as Optax does where the two differ.

    Returns
    -------
    array
        In the entries' shape; float32 for half precision, else of the logits' dtype.

    Raises
    ------
    TypeError, ValueError
        As Optax does; and for a label of a kept entry that is no class, wherever values can be read. Where they
        cannot, inside jit, its loss is NaN.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from maskloss.drop_in import optax
    >>> logits = jnp.log(jnp.asarray([[0.5, 0.5], [0.25, 0.75]]))
    >>> labels = jnp.asarray([0, 1])
    >>> losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    >>> print(jnp.exp(-losses).round(4))
    [0.5  0.75]
    """
    x = floating_logits(logits)
    check_array("labels", labels, jnp.integer, "it must hold class indices of an integer dtype")
    if not isinstance(cast(object, axis), (int, tuple)):
        fail(ValueError, "axis", describe(axis), AXIS)
    axes = check_axes(axis, x.ndim)
    where = None if where is None else with_classes(where, axis, axes, x.ndim)
    if are_theirs(quirks):
        return their_index_losses(x, labels, axis, axes, where)
    if where is not None and where.ndim != x.ndim:
        ranks = f"it must have as many axes as the entries, {x.ndim - len(axes)}, or as logits, {x.ndim}"
        fail(ValueError, "where", f"of {where.ndim - len(axes)} axes", ranks)
    entries = tuple(x.shape[a] for a in range(x.ndim) if a not in axes)
    shape: Any
    try:
        shape = jnp.broadcast_shapes(entries, labels.shape)
    except ValueError:
        shape = ()
    if len(shape) != len(entries) or labels.ndim != len(entries):
        accepted = f"class indices must have the shape {entries} of the entries, or one that broadcasts with it"
        fail(ValueError, "labels", describe(labels), accepted)
    sizes = iter(shape)
    x = jnp.broadcast_to(x, tuple(n if a in axes else next(sizes) for a, n in enumerate(x.shape)))
    # NumPy's labels stay NumPy's: JAX without x64 would make 0 of 2**32.
    labels = (np if isinstance(labels, np.ndarray) else jnp).broadcast_to(labels, shape)
    masks = masks_of(where, axes, x.shape)
    try:
        return cross_entropy(classes_last(x, axes), labels, reduction="none", **masks)
    except ValueError as error:
        text = (
            str(error).replace("name the value in ignore_index", "exclude it by where").replace("class_mask", "where")
        )
        raise ValueError(text) from None


def softmax_cross_entropy(
    logits: Any, labels: Any, axis: int | Axes | None = -1, where: Any = None, *, quirks: Quirks = None
) -> jax.Array:
    r"""Softmax cross-entropy of distributions, entry by entry: :math:`\sum_c q_c (\mathrm{lse} - x_c)`.

    Parameters
    ----------
    logits : array, shape (..., C), real floating
        The classes lie along `axis`.
    labels : array of real numbers
        Distributions over the classes, in the logits' shape or one that broadcasts with it along the entries.
    axis : int, tuple of ints or None
        The class axis, or several, which count as one. None: all of them.
    where : array of bool, optional
        Of the logits' rank: False, and the class does not exist. Of fewer axes: False, and the entry's loss is 0.
    quirks : "theirs", optional
        Answer as Optax does where the two differ.

    Returns
    -------
    array
        In the entries' shape; of the dtype of logits and labels together, float32 for half precision.

    Raises
    ------
    TypeError, ValueError
        As Optax does; and for labels that cannot be distributions.

    Examples
    --------
    A logit of minus infinity is probability 0, and costs nothing where the label is 0 as well:

    >>> import jax.numpy as jnp
    >>> from maskloss.drop_in import optax
    >>> logits, labels = jnp.asarray([0.0, 0.0, -jnp.inf]), jnp.asarray([1.0, 0.0, 0.0])
    >>> print(optax.softmax_cross_entropy(logits, labels).round(4))  # log 2
    0.6931
    """
    x = floating_logits(logits)
    check_array("labels", labels, jnp.generic, "it must hold distributions")
    axes = tuple(range(x.ndim)) if axis is None else check_axes(axis, x.ndim)
    where = None if where is None else with_classes(where, axis, axes, x.ndim)
    if are_theirs(quirks):
        log_probs = their_log_probs(x, axes, where)
        return -(labels * log_probs).sum(axis, where=where)
    if jnp.iscomplexobj(labels):
        fail(TypeError, "labels", describe(labels), "it must hold distributions, of a real dtype")
    if labels.ndim > x.ndim:
        given = axes if axis is None else axis if isinstance(axis, tuple) else (axis,)
        if max(given) >= 0:
            accepted = "beside labels of more axes than logits it must be negative: counted from the end"
            fail(ValueError, "axis", repr(axis), accepted)
        more = labels.ndim - x.ndim
        x, axes = x.reshape(*[1] * more, *x.shape), tuple(a + more for a in axes)
    both = together(x, labels)
    check_distributions(labels, axes, x)
    x, q = both
    masks = masks_of(where, axes, x.shape)
    return cross_entropy(classes_last(x, axes), classes_last(q, axes), reduction="none", **masks)


def safe_softmax_cross_entropy(logits: Any, labels: Any, *, quirks: Quirks = None) -> jax.Array:
    """:func:`softmax_cross_entropy` along the last axis, under the name that Optax gives to what is safe from -inf.

    Parameters
    ----------
    logits, labels, quirks
        As there.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from maskloss.drop_in import optax
    >>> logits, labels = jnp.asarray([0.0, -jnp.inf]), jnp.asarray([1.0, 0.0])
    >>> print(optax.safe_softmax_cross_entropy(logits, labels))
    0.0
    """
    if not are_theirs(quirks):
        return softmax_cross_entropy(logits, labels)
    x = floating_logits(logits)
    check_array("labels", labels, jnp.generic, "it must hold distributions")
    check_axes(-1, x.ndim)
    if jnp.iscomplexobj(labels):
        real, imaginary = (safe_softmax_cross_entropy(x, part, quirks=quirks) for part in (labels.real, labels.imag))
        return real + 1j * imaginary
    x, q = together(x, labels)
    if x.shape[-1] == 0:
        return jnp.zeros(x.shape[:-1], q.dtype)
    undefined = jnp.all(x == -math.inf, axis=-1) & jnp.any(q != 0, axis=-1)
    return jnp.where(undefined, math.nan, cross_entropy(x, q, reduction="none")).astype(q.dtype)


def check_array(name: str, x: Any, kind: Any, accepted: str, error: type[Exception] = TypeError) -> None:
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)) and not hasattr(x, "__jax_array__"):
        fail(TypeError, name, describe(x), "it must be an array of JAX or NumPy")
    if not jnp.issubdtype(x.dtype, kind):
        fail(error, name, describe(x), accepted)


def floating_logits(logits: Any) -> jax.Array:
    check_array("logits", logits, jnp.floating, "its dtype must be real floating")
    return jnp.asarray(logits)


def check_axes(axis: Any, ndim: int) -> Axes:
    if not isinstance(axis, tuple) and not hasattr(axis, "__index__"):
        fail(ValueError, "axis", describe(axis), AXIS)
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(check_axis(int(one) if isinstance(one, bool) else one, ndim) for one in given)
    if len(set(axes)) < len(axes):
        fail(ValueError, "axis", repr(axis), "it names one axis twice")
    return axes


def with_classes(where: Any, axis: Any, axes: Axes, ndim: int) -> jax.Array:
    """`where` with class axes, which one in the entries' shape lacks."""
    check_array("where", where, jnp.bool_, "it must be bool", ValueError)
    if where.ndim == ndim:
        return jnp.asarray(where)
    if axis is None or where.ndim + len(axes) > ndim:
        accepted = f"it must have no more axes than the entries, {ndim - len(axes)}, or as many as logits, {ndim}"
        fail(ValueError, "where", describe(where), accepted)
    return jnp.expand_dims(where, axis)


def classes_last(x: jax.Array, axes: Axes) -> jax.Array:
    """The class axes as one, the last."""
    entries = tuple(a for a in range(x.ndim) if a not in axes)
    return x.transpose(*entries, *axes).reshape(*(x.shape[a] for a in entries), math.prod(x.shape[a] for a in axes))


def check_distributions(labels: Any, axes: Axes, x: jax.Array) -> None:
    """One that broadcasts along the classes, or integers of fewer axes, are class indices that went astray."""
    shape, given = tuple(x.shape), tuple(labels.shape)
    classes = (*[1] * (len(shape) - len(given)), *given)
    indices = jnp.issubdtype(labels.dtype, jnp.integer) and len(given) < len(shape)
    if indices or any(classes[a] != shape[a] for a in axes):
        hint = "class indices go to softmax_cross_entropy_with_integer_labels"
        fail(ValueError, "labels", describe(labels), f"distributions must hold a number for each class; {hint}")


def together(x: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Of one shape, and one dtype."""
    try:
        shape = jnp.broadcast_shapes(x.shape, labels.shape)
    except ValueError:
        kind = TypeError if x.ndim == labels.ndim else ValueError  # as JAX' product of the two
        fail(kind, "labels", describe(labels), f"distributions must have the shape {x.shape} of logits, or broadcast")
    dtype = jnp.promote_types(x.dtype, labels.dtype)
    return jnp.broadcast_to(x.astype(dtype), shape), jnp.broadcast_to(jnp.asarray(labels, dtype), shape)


def masks_of(where: jax.Array | None, axes: Axes, shape: tuple[int, ...]) -> dict[str, Any]:
    """`where` as maskloss has it: a mask of the entries, or of the classes, which come last."""
    if where is None:
        return {}
    full = where.reshape(*[1] * (len(shape) - where.ndim), *where.shape)
    of_entries = all(full.shape[a] == 1 for a in axes)
    if not broadcasts(full.shape, shape) or (full.ndim > where.ndim and not of_entries):
        entries = tuple(n for a, n in enumerate(shape) if a not in axes)
        accepted = f"it must broadcast to the shape {entries} of the entries, or, of as many axes, to {shape} of logits"
        fail(ValueError, "where", f"of shape {where.shape} with its class axes", accepted)
    if of_entries:
        return {"mask": full.squeeze(axes)}
    return {"class_mask": classes_last(jnp.broadcast_to(full, shape), axes)}


def their_index_losses(x: jax.Array, labels: Any, axis: Any, axes: Axes, where: jax.Array | None) -> jax.Array:
    """lse - x_y with JAX' own reading of the index: from the end where negative, NaN where there is none."""
    if isinstance(axis, tuple):
        where = where if where is None else classes_last(where, axes)
        x, axes = classes_last(x, axes), (x.ndim - len(axes),)
    (at,) = axes
    chosen = jnp.take_along_axis(x, jnp.expand_dims(labels, at), axis=at).squeeze(at)
    losses = masked_logsumexp(x, where, axis=at).astype(x.dtype) - chosen
    return losses if where is None else jnp.where(jnp.any(where, axis=at), losses, 0)


def their_log_probs(x: jax.Array, axes: Axes, where: jax.Array | None) -> jax.Array:
    """-inf where excluded; NaN where no class has a probability. Multiplied by labels, both make NaN of a 0."""
    top = jnp.max(x, axis=axes, keepdims=True, where=where, initial=-math.inf)
    shifted = x - jax.lax.stop_gradient(top)
    log_probs = shifted - masked_logsumexp(shifted, where, axis=axes, keepdims=True).astype(x.dtype)
    return log_probs if where is None else jnp.where(where, log_probs, -math.inf)
