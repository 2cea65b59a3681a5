"""The losses: cross_entropy, label_log_probs and entropy; and denominator, which their means divide by."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from . import _bindings
from ._arguments import Reduction
from ._arrays import A, Array, namespace_of, on_arrays
from ._call import LossOptions, Options, of_labels, of_logits
from ._inputs import Given
from ._math.terms import denominator_of
from ._shards import ClassShard
from .stats import LossStats

NUMBERS = (int, float)


@overload
def cross_entropy(
    logits: A, labels: Any, *, axis: int = -1, with_stats: Literal[False] = False, **options: Unpack[LossOptions]
) -> A: ...
@overload
def cross_entropy(
    logits: A, labels: Any, *, axis: int = -1, with_stats: Literal[True], **options: Unpack[LossOptions]
) -> tuple[A, LossStats]: ...
@overload
def cross_entropy(
    logits: A, labels: Any, *, axis: int = -1, with_stats: bool, **options: Unpack[LossOptions]
) -> A | tuple[A, LossStats]: ...
@on_arrays
def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    mask: Array | None = None,
    weights: Array | float | None = None,
    class_weights: Array | None = None,
    class_mask: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int = -1,
    reduction: Reduction = "mean",
    denominator: Array | float | None = None,
    with_stats: bool = False,
    validate: bool | Literal["auto"] = "auto",
    implementation: str | None = None,
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> Any:
    r"""Masked cross-entropy between logits and labels.

    For a kept entry with logits :math:`x`, target distribution :math:`q`, class weights :math:`w` and :math:`K` allowed
    classes,

    .. math::

        \mathrm{lse} &= \log \sum_{c\ \mathrm{allowed}} e^{x_c} \\
        q'_c &= \left((1 - \epsilon)\, q_c + \epsilon / K\right) w_c \\
        \mathrm{loss} &= \sum_c q'_c\, (\mathrm{lse} - x_c) + z\, \mathrm{lse}^2

    with :math:`\epsilon` = ``label_smoothing`` and :math:`z` = ``z_loss``. What is not kept reaches neither the value
    nor any gradient, whatever it holds; where nothing is kept the loss is 0, with gradients that are 0.

    Parameters
    ----------
    logits : array, shape (..., C), real floating
        Scores before softmax; the classes lie along `axis`, the other axes are the *entries*. They decide the library
        and the device; every other array must be of the same (NumPy arrays beside JAX logits are converted).
    labels : array
        Class indices of any integer dtype, in the entries' shape; or floating distributions in the logits' shape.
    mask : array, optional
        bool, or integer 0/1, broadcast to the entries. True: the entry counts.
    weights : array or number, optional
        Real, of any sign, broadcast to the entries. 0 is the same as masked.
    class_weights : array, shape (C,), optional
        Real weight of each class.
    class_mask : array, optional
        bool, broadcast to the logits. False: the class does not exist for this entry.
    ignore_index : int, optional
        Label value that marks an entry as not counting. There is none by default.
    label_smoothing : float
        In [0, 1]: the share of the target that is spread evenly over the allowed classes.
    z_loss : float
        Coefficient of :math:`\mathrm{lse}^2`.
    softcap : float, optional
        The logits become ``softcap * tanh(logits / softcap)`` before anything else.
    axis : int
        The class axis of the logits.
    reduction : str
        ``"none"``: :math:`w_i \mathrm{loss}_i` per entry. ``"sum"``: their sum S. ``"mean"``: the weighted mean
        :math:`S / \sum_i w_i \sum_c w_c q_{ic}`. ``"mean_over_kept"``: S / kept entries. ``"mean_over_all"``:
        S / entries. ``"mean_over_sequences"``: the weighted mean along the last entry axis, then the mean over the rows
        that kept something.
    denominator : number or 0-d array, optional
        Replaces the divisor of any ``"mean..."``: gradient accumulation, data parallel.
    with_stats : bool
        Return ``(loss, LossStats)``.
    validate : bool or "auto"
        Whether a kept label that is no class raises. ``"auto"``: wherever the values can be read without waiting for a
        device and outside a tracer. True: always, waiting if need be. False: never. Where it does not raise, the loss
        and the gradient of that entry are NaN.
    implementation : str, optional
        ``"analytic"`` (the analytic forward and backward pair), ``"autodiff"`` (one expression, differentiated by the
        framework) or ``"triton"`` (the pair as GPU kernels, for class indices in CUDA tensors). None chooses the first
        that can run; one that is named runs or raises.
    class_shard : ClassShard, optional
        The logits (and `class_weights`, and the class axes of `class_mask` and of distributions) hold the classes of
        this process alone; labels are of all classes. What is returned is of all classes, and on every process.
    reproducible : bool
        Bits of value, statistics and gradients that depend on the numbers given alone: not on the library, compiler,
        device, threads, batch, order or parts. Of float32 and half precision, in two to eleven times the time.

    Returns
    -------
    array
        0-d, or of the entries' shape for ``"none"``; float32 for half precision, else of the logits' dtype. With
        `with_stats`, a pair of it and :class:`LossStats`.

    Raises
    ------
    TypeError
        An argument of a wrong kind, dtype or library.
    ValueError
        An argument of a wrong shape, value or device; a kept label outside [0, C), or of a class that `class_mask`
        excludes.

    Notes
    -----
    Differentiable with respect to logits, weights, class_weights, floating labels and denominator.

    Examples
    --------
    Next-sentence prediction for three entries, of which the last has no second sentence:

    >>> import numpy as np
    >>> import maskloss as ml
    >>> logits = np.asarray([[0.3797, 0.6203], [0.4363, 0.5637], [0.3797, 0.6203]])
    >>> labels, mask = np.asarray([0, 1, 1]), np.asarray([True, True, False])
    >>> loss = ml.cross_entropy(logits, labels, mask=mask)
    >>> print(round(float(loss), 4))
    0.7261
    """
    if reproducible is not False:
        about: dict[str, Any] = {
            **{"logits": logits, "labels": labels, "mask": mask, "weights": weights, "class_weights": class_weights},
            **{"class_mask": class_mask, "ignore_index": ignore_index, "label_smoothing": label_smoothing},
            **{"z_loss": z_loss, "softcap": softcap, "axis": axis, "reduction": reduction, "denominator": denominator},
            **{"with_stats": with_stats, "validate": validate, "implementation": implementation},
            **{"class_shard": class_shard, "reproducible": reproducible},
        }
        return _reproducible_loss(about)
    plain = weights is class_weights is class_mask is softcap is denominator is implementation is None
    plain = (
        plain
        and class_shard is None
        and type(label_smoothing) in NUMBERS
        and type(z_loss) in NUMBERS
        and label_smoothing == z_loss == 0
    )
    plain = plain and with_stats is False and type(axis) is int and (ignore_index is None or type(ignore_index) is int)
    if plain and type(validate) is type(reduction) is str and validate == "auto":
        xp = namespace_of(logits)
        common_loss = None if xp is None else _bindings.binding_of(xp).common_loss
        loss = None if common_loss is None else common_loss(logits, labels, mask, reduction, axis, ignore_index)
        if loss is not None:
            return loss
    given = Given(labels, mask, weights, class_weights, class_mask, ignore_index, validate, class_shard)
    options = Options(label_smoothing, z_loss, softcap)
    call = of_logits(logits, axis, given, options, reduction, denominator, with_stats, implementation)
    return _bindings.loss(call)


DEFAULTS: dict[str, Any] = vars(cross_entropy)["__wrapped__"].__kwdefaults__


def _reproducible_loss(given: dict[str, Any]) -> Any:
    given = {"logits": given["logits"], **DEFAULTS, **given}
    return _bindings.run_reproducible("loss", given["reproducible"], given)


@on_arrays
def label_log_probs(
    logits: A,
    labels: Array,
    *,
    mask: Array | None = None,
    class_mask: Array | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    axis: int = -1,
    validate: bool | Literal["auto"] = "auto",
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> A:
    r"""Log-probability of each entry's label, :math:`\log p_y = x_y - \mathrm{lse}`; 0 where not kept.

    Parameters
    ----------
    logits : array, shape (..., C), real floating
        As in :func:`cross_entropy`, and so are `mask`, `class_mask`, `ignore_index`, `softcap`, `axis`, `validate`,
        `class_shard`, `reproducible` and the errors.
    labels : array
        Class indices of the entries' shape; or, floating and of the logits' shape, distributions :math:`q`, which give
        :math:`\sum_c q_c \log p_c`.

    Returns
    -------
    array
        Of the entries' shape; float32 for half precision, else of the logits' dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> logits = np.log(np.asarray([[0.25, 0.75], [0.5, 0.5]]))
    >>> print(np.exp(ml.label_log_probs(logits, np.asarray([1, 0]))))
    [0.75 0.5 ]
    """
    if reproducible is not False:
        about: dict[str, Any] = {
            **{"logits": logits, "labels": labels, "mask": mask, "class_mask": class_mask, "axis": axis},
            **{"ignore_index": ignore_index, "softcap": softcap, "validate": validate, "class_shard": class_shard},
        }
        return 0.0 - _reproducible_loss({**about, "reduction": "none", "reproducible": reproducible})
    given = Given(labels, mask, None, None, class_mask, ignore_index, validate, class_shard)
    call = of_logits(logits, axis, given, Options(softcap=softcap))
    return _bindings.log_probs(call)


@on_arrays
def entropy(
    logits: A,
    *,
    mask: Array | None = None,
    class_mask: Array | None = None,
    softcap: float | None = None,
    axis: int = -1,
    class_shard: ClassShard | None = None,
    reproducible: bool = False,
) -> A:
    r"""Entropy of each entry's softmax, :math:`-\sum_c p_c \log p_c` in nats; 0 where not kept.

    Parameters
    ----------
    logits : array, shape (..., C), real floating
        As in :func:`cross_entropy`, and so are `mask`, `class_mask`, `softcap`, `axis`, `class_shard`, `reproducible`
        and the errors.

    Returns
    -------
    array
        Of the entries' shape; float32 for half precision, else of the logits' dtype. A class of probability 0 adds 0.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(round(float(ml.entropy(np.asarray([0.0, 0.0, -np.inf]))), 6))  # log 2
    0.693147
    """
    if reproducible is not False:
        about = {"logits": logits, "mask": mask, "class_mask": class_mask, "softcap": softcap, "axis": axis}
        return _bindings.run_reproducible("entropy", reproducible, {**about, "class_shard": class_shard})
    given = Given(mask=mask, class_mask=class_mask, class_shard=class_shard)
    return _bindings.entropy(of_logits(logits, axis, given, Options(softcap=softcap)))


@on_arrays
def denominator(
    labels: A,
    *,
    mask: Array | None = None,
    weights: Array | float | None = None,
    class_weights: Array | None = None,
    class_mask: Array | None = None,
    ignore_index: int | None = None,
    axis: int = -1,
    reduction: Reduction = "mean",
    classes: int | None = None,
    validate: bool | Literal["auto"] = "auto",
) -> A:
    r"""What a mean divides by, before any logits are: :math:`\sum_i w_i \sum_c w_c q_{ic}`, or a count.

    It adds: over the micro-batches of a step, over the processes of a group (one all-reduce). Each then calls
    :func:`cross_entropy` with the sum as its ``denominator``, and the sum of their losses is the mean over all their
    entries, where the mean of their means is another number as soon as they keep different numbers of entries.

    Parameters
    ----------
    labels : array
        Class indices, or floating distributions. They decide the library and the device.
    mask, weights, class_weights, class_mask, ignore_index, validate
        As in :func:`cross_entropy`.
    axis : int
        The class axis that the logits will have.
    reduction : str
        Which mean: ``"mean"`` (also for ``"sum"`` and ``"none"``), ``"mean_over_kept"``, ``"mean_over_all"`` or
        ``"mean_over_sequences"``, of which each sequence must lie in one call.
    classes : int, optional
        Number of classes, where neither distributions, nor class_weights, nor class_mask tell it. It is needed to
        refuse labels that are too large for it, or with a class_mask that broadcasts along the classes.

    Returns
    -------
    array
        0-d. A count (of entries, or sequences) is an integer, and exact. A sum of weights is float64 where weights,
        class_weights or distributions are, else float32.

    Raises
    ------
    TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    The value is that of :class:`LossStats` for the same arguments. Differentiable with respect to weights,
    class_weights and floating labels.

    Examples
    --------
    Two micro-batches that keep three and one entries:

    >>> import numpy as np
    >>> import maskloss as ml
    >>> logits = np.log(np.asarray([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.25, 0.75]]))
    >>> labels = np.asarray([[0, 1], [1, 0]])
    >>> mask = np.asarray([[True, True], [True, False]])
    >>> halves = [(logits[:2], labels[0], mask[0]), (logits[2:], labels[1], mask[1])]
    >>> total = sum(ml.denominator(y, mask=m) for _, y, m in halves)
    >>> loss = sum(ml.cross_entropy(x, y, mask=m, denominator=total) for x, y, m in halves)
    >>> print(total, round(float(loss), 6))  # (log 2 + log 4/3 + log 2) / 3
    3 0.557992
    """
    given = Given(labels, mask, weights, class_weights, class_mask, ignore_index, validate)
    return denominator_of(of_labels(labels, axis, classes, given, reduction))
