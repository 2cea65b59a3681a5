"""The losses of logits that are never all there: of hidden states and the kernel that projects them."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from . import _bindings
from ._arguments import Reduction
from ._arrays import A, Array, on_arrays
from ._call import Options, ProjectionOptions, check_not_reproducible, of_projection
from ._engine.projection import ChunkSizeWarning as ChunkSizeWarning
from ._inputs import Given
from ._shards import ClassShard
from .stats import LossStats


@overload
def linear_cross_entropy(
    hidden: A, kernel: Any, labels: Any, *, with_stats: Literal[False] = False, **options: Unpack[ProjectionOptions]
) -> A: ...
@overload
def linear_cross_entropy(
    hidden: A, kernel: Any, labels: Any, *, with_stats: Literal[True], **options: Unpack[ProjectionOptions]
) -> tuple[A, LossStats]: ...
@overload
def linear_cross_entropy(
    hidden: A, kernel: Any, labels: Any, *, with_stats: bool, **options: Unpack[ProjectionOptions]
) -> A | tuple[A, LossStats]: ...
@on_arrays
def linear_cross_entropy(
    hidden: Array,
    kernel: Array,
    labels: Array,
    *,
    bias: Array | None = None,
    kernel_layout: Literal["vd", "dv"] = "vd",
    chunk_size: int | None = None,
    mask: Array | None = None,
    weights: Array | float | None = None,
    class_weights: Array | None = None,
    class_mask: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    denominator: Array | float | None = None,
    with_stats: bool = False,
    validate: bool | Literal["auto"] = "auto",
    implementation: str | None = None,
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> Any:
    r"""Masked cross-entropy of the logits :math:`x = h K^\top + b`, of which a chunk is in memory at a time.

    The same as ``cross_entropy(hidden @ kernel.T + bias, labels, ...)``, made from a chunk of logits at a time and from
    kept rows alone. Where a scalar loss is differentiated its gradients are made in the same walk: three matrix
    products, and nothing of the logits' size is kept. This holds eagerly, and under ``jax.jit`` where JAX sees one
    device; elsewhere (``torch.compile``, ``torch.func``, forward mode, several JAX devices) all logits are made at
    once, and a `chunk_size` is ignored with a :class:`ChunkSizeWarning`.

    Parameters
    ----------
    hidden : array, shape (..., D), real floating
        Hidden states; the axes other than the last are the *entries*. They decide the library and the device.
    kernel : array, shape (V, D), real floating
        The output projection, a row for each class, as in tied embeddings and in ``torch.nn.Linear.weight``; of shape
        (D, V) with ``kernel_layout="dv"``, as in Flax and Keras.
    labels : array
        As in :func:`cross_entropy`, of the entries' shape, or floating and of shape (..., V).
    bias : array, shape (V,), optional
        Added to the logits.
    kernel_layout : str
        ``"vd"`` or ``"dv"``: which axis of the kernel is which. A square kernel fits both; nothing is guessed.
    chunk_size : int, optional
        Rows of logits that exist at a time. By default as many as fill 20 MiB, at least 128 and at most 512.
    mask, weights, class_weights, class_mask, ignore_index, label_smoothing, z_loss, softcap : optional
        As in :func:`cross_entropy`; `class_mask` broadcasts to the shape (..., V).
    reduction, denominator, with_stats, validate, implementation : optional
        As in :func:`cross_entropy`.
    class_shard : ClassShard, optional
        The kernel and the bias hold the classes of this process alone; hidden states are the same on every process, and
        so is their gradient.
    reproducible : bool
        Refused: the product is each library's own. :func:`cross_entropy` of logits takes it.

    Returns
    -------
    array, or (array, LossStats) where `with_stats` is True
        As :func:`cross_entropy`: float32, or float64 where an argument of the projection is.

    Raises
    ------
    TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    Differentiable with respect to hidden, kernel and bias, and to all that :func:`cross_entropy` is. Half precision is
    computed and summed in float32, the kernel's gradient included; each gradient has its argument's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> hidden = np.asarray([[1.0, 0.0], [np.nan, 0.0]])
    >>> kernel = np.log(np.asarray([[0.25, 1.0], [0.75, 1.0]]))
    >>> labels, mask = np.asarray([0, 0]), np.asarray([True, False])
    >>> loss = ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)
    >>> print(round(float(loss), 6))  # log 4
    1.386294
    """
    projection = hidden, kernel, bias, kernel_layout, chunk_size
    check_not_reproducible(reproducible)
    given = Given(labels, mask, weights, class_weights, class_mask, ignore_index, validate, class_shard)
    options = Options(label_smoothing, z_loss, softcap)
    call = of_projection(projection, given, options, reduction, denominator, with_stats, implementation)
    return _bindings.loss(call)


@on_arrays
def linear_label_log_probs(
    hidden: A,
    kernel: Array,
    labels: Array,
    *,
    bias: Array | None = None,
    kernel_layout: Literal["vd", "dv"] = "vd",
    chunk_size: int | None = None,
    mask: Array | None = None,
    class_mask: Array | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    validate: bool | Literal["auto"] = "auto",
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> A:
    r"""Log-probability of each entry's label under the logits :math:`h K^\top + b`; 0 where not kept.

    The same as ``label_log_probs(hidden @ kernel.T + bias, labels, ...)`` without the logits: one matrix product, four
    with the gradient.

    Parameters
    ----------
    hidden, kernel, bias, kernel_layout, chunk_size
        As in :func:`linear_cross_entropy`, and so are the errors.
    labels, mask, class_mask, ignore_index, softcap, validate, class_shard, reproducible
        As in :func:`label_log_probs`.

    Returns
    -------
    array
        Of the entries' shape; float32, or float64 where an argument of the projection is.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> hidden = np.asarray([[1.0, 0.0]])
    >>> kernel = np.log(np.asarray([[0.25, 1.0], [0.75, 1.0]]))
    >>> print(np.exp(ml.linear_label_log_probs(hidden, kernel, np.asarray([1]))))
    [0.75]
    """
    projection = hidden, kernel, bias, kernel_layout, chunk_size
    check_not_reproducible(reproducible)
    given = Given(labels, mask, None, None, class_mask, ignore_index, validate, class_shard)
    return _bindings.log_probs(of_projection(projection, given, Options(softcap=softcap)))


@on_arrays
def linear_entropy(
    hidden: A,
    kernel: Array,
    *,
    bias: Array | None = None,
    kernel_layout: Literal["vd", "dv"] = "vd",
    chunk_size: int | None = None,
    mask: Array | None = None,
    class_mask: Array | None = None,
    softcap: float | None = None,
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> A:
    r"""Entropy of each entry's softmax of the logits :math:`h K^\top + b`, in nats; 0 where not kept.

    The same as ``entropy(hidden @ kernel.T + bias, ...)`` without the logits: one matrix product, four with the
    gradient.

    Parameters
    ----------
    hidden, kernel, bias, kernel_layout, chunk_size
        As in :func:`linear_cross_entropy`, and so are the errors.
    mask, class_mask, softcap, class_shard, reproducible
        As in :func:`entropy`.

    Returns
    -------
    array
        Of the entries' shape; float32, or float64 where an argument of the projection is.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> hidden = np.asarray([[1.0, 0.0]])
    >>> kernel = np.log(np.asarray([[0.5, 1.0], [0.5, 1.0]]))
    >>> print(np.round(ml.linear_entropy(hidden, kernel), 6))  # log 2
    [0.693147]
    """
    projection = hidden, kernel, bias, kernel_layout, chunk_size
    check_not_reproducible(reproducible)
    given = Given(mask=mask, class_mask=class_mask, class_shard=class_shard)
    return _bindings.entropy(of_projection(projection, given, Options(softcap=softcap)))
