"""The samples PyTorch tests its own cross-entropy with, asked of maskloss and of PyTorch."""

import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch.testing._internal.common_methods_invocations imports it")

import torch.testing._internal.common_methods_invocations as invocations  # noqa: E402
from torch.nn.functional import cross_entropy as torch_cross_entropy  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import maskloss as ml  # noqa: E402

pytestmark = pytest.mark.of_backend("torch")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def as_maskloss(logits, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """F.cross_entropy's arguments as maskloss has them.

    PyTorch's mean of index labels divides by the sum of w_y, which is "mean"; its mean of distributions divides by the
    number of entries whatever they weigh, which is "mean_over_all".
    """
    distributions = labels.is_floating_point()
    return ml.cross_entropy(
        logits,
        labels,
        class_weights=weight,
        ignore_index=None if distributions and ignore_index == -100 else ignore_index,
        label_smoothing=label_smoothing,
        axis=1 if logits.ndim > 1 else -1,
        reduction="mean_over_all" if distributions and reduction == "mean" else reduction,
    )


def single(x):
    """float32 copies of half-precision tensors: PyTorch answers in half, maskloss computes and answers in float32."""
    if not isinstance(x, torch.Tensor):
        return x
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.detach().to(torch.float32 if half else x.dtype).requires_grad_(x.requires_grad)


def value_and_gradients(loss, logits, labels, upstream=None):
    value = loss(logits, labels)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    wanted = [x for x in (logits, labels) if x.requires_grad]
    return value, torch.autograd.grad(value, wanted, upstream)


def assert_same(logits, labels, **options):
    value, gradients = value_and_gradients(lambda x, y: as_maskloss(x, y, **options), logits, labels)
    exact = {name: single(x) for name, x in options.items()}
    expected, expected_gradients = value_and_gradients(
        lambda x, y: torch_cross_entropy(x, y, **exact), single(logits), single(labels)
    )
    torch.testing.assert_close(value, expected)
    for gradient, wanted, x in zip(gradients, expected_gradients, (logits, labels), strict=False):
        torch.testing.assert_close(gradient, wanted.to(x.dtype))


def assert_nothing_kept(logits, labels, **options):
    value, (gradient,) = value_and_gradients(lambda x, y: as_maskloss(x, y, **options), logits, labels)
    assert (value == 0).all()
    assert (gradient == 0).all()


def op_samples(dtype):
    (info,) = [op for op in invocations.op_db if op.name == "nn.functional.cross_entropy"]
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        yield (sample.input, *sample.args), sample.kwargs


def module_samples(dtype):
    (info,) = [module for module in module_db if module.module_cls is torch.nn.CrossEntropyLoss]
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    for given in inputs:
        options = inspect.signature(torch.nn.CrossEntropyLoss).bind(
            *given.constructor_input.args, **given.constructor_input.kwargs
        )
        logits, labels = given.forward_input.args
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in (logits, labels)]
        yield leaves, options.arguments


# Counted in PyTorch 2.13. OpInfo: 11 settings, all but ignore_index with both kinds of label. Module: 3 reductions of
# 3 settings in 9 shapes (4 with distributions) and of 2 settings with ignore_index in 4 shapes. A version with more is
# welcome; one with fewer would let this pass on less.
FEWEST = {"op_samples": 21, "module_samples": 3 * (3 * 9 + 2 * 4)}


@pytest.mark.parametrize("samples", [op_samples, module_samples], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sample_has_pytorchs_value_and_gradients(samples, dtype):
    torch.manual_seed(0)
    count = 0
    for (logits, labels), options in samples(dtype):
        if (labels == options.get("ignore_index", -100)).all():  # PyTorch's mean is NaN there
            assert_nothing_kept(logits, labels, **options)
        else:
            assert_same(logits, labels, **options)
        count += 1
    assert count >= FEWEST[samples.__name__]


@pytest.mark.parametrize(
    ("smoothing", "weighted", "reduction", "ignored", "distributions"),
    [
        case
        for case in itertools.product(
            (0.0, 0.15, 1.0), (False, True), ("mean", "sum", "none"), (False, True), (False, True)
        )
        if not (case[3] and case[4])  # PyTorch has no ignored distributions
    ],
)
def test_smoothing_with_class_weights_and_ignored_labels(smoothing, weighted, reduction, ignored, distributions):
    """PyTorch's samples never join these. Its smoothing part is weighted by w_c, its mean divides by the sum of w_y."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(2, 3, 5, dtype=torch.float64).softmax(1) if distributions else torch.randint(3, (2, 5))
    if ignored:
        labels[0, 1:3] = -100
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64) if weighted else None
    assert_same(logits, labels, weight=weight, label_smoothing=smoothing, reduction=reduction)


def test_nothing_kept_is_nan_in_pytorch_and_zero_here():
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.full((2,), -100)
    assert torch_cross_entropy(logits, labels).isnan()
    assert_nothing_kept(logits, labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_the_module_refuses_is_refused(dtype):
    (info,) = [module for module in module_db if module.module_cls is torch.nn.CrossEntropyLoss]
    errors = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert errors
    for error in errors:
        given = error.module_error_input
        with pytest.raises((TypeError, ValueError)):
            as_maskloss(*given.forward_input.args, **given.constructor_input.kwargs)


def test_the_comparison_can_fail(monkeypatch):
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert_same(logits, torch.tensor([0, 1]))
    monkeypatch.setitem(globals(), "torch_cross_entropy", lambda x, y: torch.nn.functional.cross_entropy(x, y + 1))
    with pytest.raises(AssertionError):
        assert_same(logits, torch.tensor([0, 1]))
