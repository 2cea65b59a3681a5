"""The samples PyTorch tests its own cross-entropy with, as they are in its wheel, asked of the drop-in as it is."""

import copy
import itertools
import pickle

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch.testing._internal.common_methods_invocations imports it")

import torch.testing._internal.common_methods_invocations as invocations  # noqa: E402
from torch.nn.functional import cross_entropy as torch_cross_entropy  # noqa: E402
from torch.testing._internal import jit_metaprogramming_utils  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import maskloss as ml  # noqa: E402
from maskloss.drop_in.torch import CrossEntropyLoss, cross_entropy  # noqa: E402

pytestmark = pytest.mark.of_backend("torch")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUIRKS = (None, "theirs")
(OP,) = [op for op in invocations.op_db if op.name == "nn.functional.cross_entropy"]
(MODULE,) = [module for module in module_db if module.module_cls is torch.nn.CrossEntropyLoss]
# Counted in PyTorch 2.13. OpInfo: 11 settings, all but ignore_index with both kinds of label. Module: 3 reductions of
# 3 settings in 9 shapes (4 with distributions) and of 2 settings with ignore_index in 4 shapes, and 7 errors. A version
# with more is welcome; one with fewer would let this pass on less.
FEWEST = {"op": 21, "module": 3 * (3 * 9 + 2 * 4), "errors": 7}


def op_samples(dtype):
    return list(OP.sample_inputs("cpu", dtype, requires_grad=True))


def module_samples(dtype):
    return MODULE.module_inputs_func(MODULE, device="cpu", dtype=dtype, requires_grad=False, training=True)


def leaves(given):
    """As variables: the samples of the module are made without a gradient, as test_forward makes them."""
    return [x.detach().requires_grad_(x.is_floating_point()) for x in given]


def single(x):
    """float32 copies of half precision: PyTorch rounds at each step, the drop-in at the end, or not at all."""
    if not isinstance(x, torch.Tensor):
        return x
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.detach().to(torch.float32 if half else x.dtype).requires_grad_(x.requires_grad)


def value_and_gradients(loss, given):
    value = loss(*given)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    wanted = [x for x in given if x.requires_grad]
    return value, torch.autograd.grad(value, wanted, upstream)


def assert_same(given, options, quirks):
    """The drop-in's loss and gradients are PyTorch's."""
    value, gradients = value_and_gradients(lambda x, y: cross_entropy(x, y, **options, quirks=quirks), given)
    exact = {name: single(x) for name, x in options.items()}
    expected, expected_gradients = value_and_gradients(
        lambda x, y: torch_cross_entropy(x, y, **exact), [single(x) for x in given]
    )
    if quirks:
        expected = expected.to(given[0].dtype)
    torch.testing.assert_close(value, expected, equal_nan=True)
    # Of a loss in half precision the upstream gradient was rounded as well.
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if value.dtype.itemsize == 2 else {}
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted.to(gradient.dtype), **tolerance)


@pytest.mark.parametrize("quirks", QUIRKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_sample_of_the_function(dtype, quirks):
    torch.manual_seed(0)
    samples = op_samples(dtype)
    for sample in samples:
        assert_same((sample.input, *sample.args), sample.kwargs, quirks)
    assert len(samples) >= FEWEST["op"]


@pytest.mark.parametrize("quirks", QUIRKS)
def test_derivatives_of_each_sample_of_the_function(quirks):
    """What OpInfo says the function has: forward mode, and second derivatives by both."""
    assert OP.supports_forward_ad
    assert OP.supports_fwgrad_bwgrad
    torch.manual_seed(0)
    for sample in op_samples(torch.float64):
        variables = [x for x in (sample.input, *sample.args) if x.requires_grad]
        constants = [x for x in sample.args if not x.requires_grad]

        def function(*given, sample=sample, constants=constants):
            return cross_entropy(*given, *constants, **sample.kwargs, quirks=quirks)

        torch.autograd.gradcheck(function, variables, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
        torch.autograd.gradgradcheck(function, variables, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("quirks", QUIRKS)
@pytest.mark.parametrize("dtype", MODULE.dtypes, ids=str)
def test_each_sample_of_the_module(dtype, quirks):
    """As test_modules.test_forward: beside the sample's own reference."""
    torch.manual_seed(0)
    samples = module_samples(dtype)
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        module = CrossEntropyLoss(*made.args, **made.kwargs, quirks=quirks).to(dtype)
        found = module(*given.args, **given.kwargs)
        if dtype is not torch.float16:  # whose reference gives -55.03 for a sum of -55.18
            expected = sample.reference_fn(module, *given.args, **given.kwargs)
            if quirks is None and (given.args[1] == module.ignore_index).all():  # NaN there: the row "nothing_kept"
                expected = torch.zeros_like(expected)
            torch.testing.assert_close(found, expected, equal_nan=True)
        variables = leaves(given.args)
        if quirks or not (variables[1] == module.ignore_index).all():
            assert_same(variables, {n: getattr(module, n) for n in ("weight", "ignore_index", *made.kwargs)}, quirks)
    assert len(samples) >= FEWEST["module"]


def test_the_module_is_kept_and_copied():
    """As test_modules' test_pickle, test_save_load and test_repr, and copy.deepcopy."""
    torch.manual_seed(0)
    for sample in module_samples(torch.float32):
        made, given = sample.constructor_input, sample.forward_input
        module = CrossEntropyLoss(*made.args, **made.kwargs)
        expected, other = module(*given.args), CrossEntropyLoss(*made.args, **made.kwargs)
        other.load_state_dict(module.state_dict(), strict=True)
        assert repr(module).startswith("CrossEntropyLoss(")
        for kept in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), other):
            assert torch.equal(kept(*given.args), expected)


@pytest.mark.parametrize("quirks", QUIRKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_each_error_of_the_module(dtype, quirks):
    """As test_modules.test_errors: of PyTorch's type, and with its words."""
    errors = MODULE.module_error_inputs_func(MODULE, device="cpu", dtype=dtype, requires_grad=True, training=True)
    for error in errors:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        module = CrossEntropyLoss(*made.args, **made.kwargs, quirks=quirks)
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*given.args, **given.kwargs)
    assert len(errors) >= FEWEST["errors"]


def test_the_sample_of_the_compiler():
    samples = [x for x in jit_metaprogramming_utils.get_nn_functional_tests() if x[0] == "cross_entropy"]
    for _, shape, (target,), *_ in samples:
        assert_same((torch.randn(shape, requires_grad=True), target), {}, None)
    assert len(samples) == 1


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
    for quirks in QUIRKS:
        assert_same((logits, labels), {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}, quirks)


def test_the_comparison_can_fail(monkeypatch):
    given = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1])
    assert_same(given, {}, None)
    monkeypatch.setitem(globals(), "torch_cross_entropy", lambda x, y: torch.nn.functional.cross_entropy(x, y + 1))
    with pytest.raises(AssertionError):
        assert_same(given, {}, None)


def test_the_gradient_of_a_small_loss_is_given_away_once():
    """It is made beside the loss, (p - [c = y]) / 2 with p = 1/65; another backward must not see it."""
    x = torch.zeros(1, 2, 65, requires_grad=True)
    loss = ml.cross_entropy(x, torch.tensor([[0, 1]]))
    (first,) = torch.autograd.grad(4 * loss, x, retain_graph=True)
    before = first.clone()
    (second,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, before, rtol=0, atol=0)
    torch.testing.assert_close(4 * second, first, rtol=1e-6, atol=0)
    wanted = torch.full((65,), 2 / 65)
    wanted[0] -= 2
    torch.testing.assert_close(first[0, 0], wanted, rtol=1e-6, atol=0)


def test_a_loss_scaler_keeps_the_gradient_of_a_small_loss_in_float16():
    """p / N = 2**-7 / 2**11 is among the coarsest numbers of float16, 2**10 times that is not."""
    x = torch.zeros(2**11, 2**7, dtype=torch.float16, requires_grad=True)
    x.data[:, 1] = 0.375  # p is then no power of two
    (2**10 * ml.cross_entropy(x, torch.zeros(2**11, dtype=torch.int64))).backward()
    p = torch.softmax(x.detach()[:1].double(), -1)[0, 2].item()
    assert abs(x.grad[0, 2].item() / (2**10 * p / 2**11) - 1) < 2.0**-10


def test_a_sum_of_large_exponentials_of_a_small_loss():
    """Of 16 equal logits of 85 the sum is 1e38, and 2**-10 / 1e38 has few digits; p = 1/16."""
    x = torch.full((1, 16, 1024), 85.0, requires_grad=True)
    ml.cross_entropy(x, torch.zeros(1, 1024, dtype=torch.int64), axis=1).backward()
    torch.testing.assert_close(x.grad[0, 5], torch.full((1024,), 2.0**-14), rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("upstream", [float("inf"), float("nan")])
def test_an_overflown_loss_scaler_reaches_no_ignored_entry_of_a_small_loss(axis, upstream):
    x = torch.zeros((96, 65) if axis == -1 else (1, 16, 96), requires_grad=True)
    labels = torch.zeros((96,) if axis == -1 else (1, 96), dtype=torch.int64)
    labels[..., 3] = -100
    (ml.cross_entropy(x, labels, axis=axis, ignore_index=-100) * upstream).backward()
    gradient = x.grad.movedim(axis, -1).reshape(96, -1)
    assert (gradient[3] == 0).all()
    assert not gradient[:3].isfinite().any()


def test_another_default_device_leaves_a_small_loss_where_its_logits_are():
    """The gradient of a mean over 96 entries is (p - [c = y]) / 96, with p = 1/128."""
    x = torch.zeros(96, 128, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(96, dtype=torch.int64)
    with torch.device("meta"):
        ml.cross_entropy(x, labels).backward()
    wanted = torch.full((96, 128), 1 / (128 * 96), dtype=torch.float64)
    wanted[:, 0] -= 1 / 96
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_each_backward_of_a_small_loss_has_the_same_bits(reduction, share):
    """Of rows that are taken out, and of ones that are not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 128, generator=generator).requires_grad_()
    mask = torch.rand(96, generator=generator) < share
    loss = ml.cross_entropy(x, torch.arange(96), mask=mask, reduction=reduction)
    upstream = torch.rand(loss.shape, generator=generator)
    first, second = (torch.autograd.grad(loss, x, upstream, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
