"""maskloss.drop_in.torch beside PyTorch: the same but for the rows of DIFFERENCES, each of which calls PyTorch here."""

import itertools
import math
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy as theirs  # noqa: E402

import maskloss as ml  # noqa: E402
from maskloss.drop_in import _torch_quirks  # noqa: E402
from maskloss.drop_in.torch import CrossEntropyLoss, cross_entropy  # noqa: E402
from tests.drop_in.differences import rows, shown_in  # noqa: E402

pytestmark = pytest.mark.of_backend("torch")

INF, NAN = math.inf, math.nan
LOG_2 = math.log(2)
# Their losses are the logarithms of 2, of 4 and of 4.
HALVES = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
TARGET = torch.tensor([0, 1, 2])


def ours_as_theirs(*args, **options):
    return cross_entropy(*args, **options, quirks="theirs")


def outcome(function, logits, target, *args, **options):
    """The loss and the gradient of the logits; or the type of the error."""
    logits = logits.clone().requires_grad_()
    try:
        loss = function(logits, target, *args, **options)
        upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        return [loss.detach(), *torch.autograd.grad(loss, logits, upstream)]
    except Exception as error:
        return type(error)


def assert_outcome(found, expected):
    """The same numbers, dtypes and NaN; or an error of the same type, or of one derived from it."""
    if isinstance(found, type) or isinstance(expected, type):
        assert isinstance(found, type), (found, expected)
        assert isinstance(expected, type), (found, expected)
        assert issubclass(found, expected), (found, expected)
        return
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, rtol=1e-5, atol=1e-6)


def both(*args, **options):
    """(PyTorch's outcome, ours): and with quirks="theirs" ours is PyTorch's."""
    expected = outcome(theirs, *args, **options)
    assert_outcome(outcome(ours_as_theirs, *args, **options), expected)
    return expected, outcome(cross_entropy, *args, **options)


def is_zero(*tensors):
    return all(bool((x == 0).all()) for x in tensors)


def test_difference_nothing_kept():
    for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.ones(3).double()}):
        (loss, gradient), ours = both(HALVES, torch.full((3,), -100), **options)
        assert loss.isnan()
        assert is_zero(gradient, *ours)
    (loss, _), ours = both(HALVES[:0], HALVES[:0].exp())
    assert loss.isnan()
    assert is_zero(*ours)


def test_difference_divisor_of_zero():
    (loss, gradient), ours = both(HALVES[:1], TARGET[:1], torch.tensor([0.0, 1, 1]).double())
    assert loss.isnan()
    assert gradient.isnan().all()
    assert is_zero(*ours)
    (loss, gradient), ours = both(HALVES[:2], TARGET[:2], torch.tensor([1.0, -1, 1]).double())
    assert loss.isinf()
    assert not gradient.isfinite().all()
    assert is_zero(*ours)


def test_difference_ignored_nan():
    for bad in ([NAN, 0, 0], [INF, 0, 0], [-INF, -INF, -INF]):
        logits = torch.cat((HALVES[:1], torch.tensor([bad]).double()))
        for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
            (loss, gradient), ours = both(logits, torch.tensor([0, -100]), **options)
            assert gradient[1].isnan().all()
            assert is_zero(ours[1][1])
            torch.testing.assert_close(ours[0], loss)
            torch.testing.assert_close(ours[1][0], gradient[0])


def test_difference_zero_times_infinity():
    excluded = torch.tensor([[0.5, 0.5, 0.0]]).double().log()
    one_hot = torch.tensor([[1.0, 0, 0]]).double()
    without = torch.tensor([1.0, 1, 0]).double()
    for target, options in (
        (one_hot, {}),
        (one_hot, {"weight": without}),
        (TARGET[:1], {"weight": without, "label_smoothing": 0.5}),
    ):
        (loss, gradient), ours = both(excluded, target, **options)
        assert loss.isnan()
        # Of log 2 at the classes that there are: smoothing of 1/2 gives the label 1/2 + 1/6, and the other 1/6.
        weighs = 5 / 6 if options.get("label_smoothing") else 1
        torch.testing.assert_close(ours[0].item(), weighs * LOG_2)
        torch.testing.assert_close(ours[1], gradient)
    (loss, _), ours = both(excluded, TARGET[2:], label_smoothing=1.0)
    assert loss.isnan()
    assert ours[0] == INF


def test_difference_infinite_logits():
    for row, ours_is in (([INF, 0, 0], INF), ([0, INF, 0], NAN), ([-INF, -INF, -INF], INF)):
        (loss, gradient), ours = both(torch.tensor([row]).double(), TARGET[1:2], reduction="sum")
        assert loss.isnan()
        assert gradient.isnan().all()
        torch.testing.assert_close(ours[0].item(), ours_is, equal_nan=True)


def test_difference_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        for target in (TARGET, HALVES.exp().to(dtype)):
            given = HALVES.to(dtype), target
            assert theirs(*given).dtype is ours_as_theirs(*given).dtype is dtype
            assert cross_entropy(*given).dtype is torch.float32
            exact = theirs(*(x.float() if x.is_floating_point() else x for x in given))
            torch.testing.assert_close(cross_entropy(*given), exact)
            torch.testing.assert_close(ours_as_theirs(*given), theirs(*given))


def test_difference_label_smoothing_outside():
    for smoothing in (-0.1, NAN):
        expected, ours = both(HALVES, TARGET, label_smoothing=smoothing)
        assert_outcome(expected, outcome(theirs, HALVES, TARGET))
        assert ours is RuntimeError


def test_difference_byte_wraps():
    logits = torch.zeros(2, 200, dtype=torch.float64)
    logits[0, 156] = 3.0
    target = torch.tensor([156, 3], dtype=torch.uint8)
    for reduction in ("none", "sum", "mean"):
        expected, ours = both(logits, target, reduction=reduction, label_smoothing=0.5)
        assert_outcome(ours, outcome(theirs, logits, target.long(), reduction=reduction, label_smoothing=0.5))
        assert not torch.allclose(expected[0], ours[0])


def test_difference_no_classes():
    for shape, kind in (((2, 0), IndexError), ((2, 0, 3), RuntimeError)):
        logits = torch.zeros(shape)
        for reduction, value in (("none", 0), ("sum", 0), ("mean", NAN)):
            (loss, _), ours = both(logits, logits, reduction=reduction)
            torch.testing.assert_close(loss, torch.full_like(loss, value), equal_nan=True)
            assert ours is kind
    assert both(torch.zeros(2, 0), TARGET[:2]) == (IndexError, IndexError)


def test_difference_unread_target():
    target = torch.tensor([0, 1, 3])

    def compiled(function):
        torch.compiler.reset()
        # Inductor's code looks at indices; aot_eager calls PyTorch's own operators, whose error is an IndexError.
        return torch.compile(function, fullgraph=True, backend="inductor")

    assert outcome(compiled(theirs), HALVES, target) is RuntimeError
    assert outcome(compiled(ours_as_theirs), HALVES, target) is RuntimeError
    losses, gradient = outcome(compiled(cross_entropy), HALVES, target, reduction="none")
    assert losses.isnan().tolist() == [False, False, True]
    assert gradient.isnan().all(-1).tolist() == [False, False, True]


def test_difference_unread_target_in_a_transform():
    given = HALVES[None], torch.tensor([[0, 1, 3]])
    with pytest.raises(RuntimeError):
        torch.func.vmap(theirs)(*given)
    for function in (cross_entropy, ours_as_theirs):
        assert torch.func.vmap(function)(*given).isnan().all()


def test_difference_complex_weight():
    given = HALVES, HALVES.exp(), torch.ones(3, dtype=torch.complex64)
    assert theirs(*given).is_complex()
    for function in (cross_entropy, ours_as_theirs):
        with pytest.raises(NotImplementedError, match="input is a"):
            function(*given)


def test_difference_logits_changed_in_place():
    for shape in ((300, 100), (2, 30, 200)):
        gradients = []
        for function in (theirs, ours_as_theirs, cross_entropy):
            x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            logits = x + 0
            loss = function(logits, torch.zeros(shape[:1] + shape[2:]).long())
            logits.add_(torch.arange(shape[-1]))
            if function is cross_entropy:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    loss.backward()
            else:
                gradients += torch.autograd.grad(loss, x)
        assert_outcome(gradients[1:], gradients[:1])


def test_every_difference_has_a_row_and_a_test():
    assert shown_in(sys.modules[__name__]) == rows("torch")


def test_a_difference_that_there_is_not_is_told(monkeypatch):
    """What `both` compares can fail, both ways."""
    with pytest.raises(AssertionError):
        assert_outcome(outcome(cross_entropy, HALVES, torch.full((3,), -100)), outcome(theirs, HALVES, TARGET - 200))
    monkeypatch.setattr(_torch_quirks, "has_softmax", lambda asked: torch.ones_like(asked.target, dtype=torch.bool))
    with pytest.raises(AssertionError):
        test_difference_ignored_nan()


# Bad calls: PyTorch's error is ours. Of images, 1-D logits, dtypes and options.
X = torch.zeros(2, 3)
Y = torch.tensor([0, 2])
Q = torch.full((2, 3), 1 / 3)
IMAGE = torch.zeros(2, 3, 4, 5)
BAD = {
    "int32 target": (X, Y.int()),
    "bool target": (X, Y.bool()),
    "floating indices": (X, Y.float()),
    "floating indices of images": (IMAGE, torch.zeros(2, 4, 5)),
    "one-hot of integers": (X, torch.eye(3).long()[Y]),
    "uint8 target of images": (IMAGE, torch.zeros(2, 4, 5, dtype=torch.uint8)),
    "uint8 target, smoothed weighted mean": (X, Y.byte(), torch.ones(3), None, -100, None, "mean", 0.1),
    "integer logits": (X.long(), Y),
    "integer logits, probabilities": (X.long(), Q),
    "complex logits": (X.cfloat(), Y),
    "float8 logits": (X.to(torch.float8_e4m3fn), Y),
    "float8 probabilities": (X, Q.to(torch.float8_e4m3fn)),
    "0-d logits": (X[0, 0], Y[0]),
    "0-d logits, probability": (X[0, 0], Q[0, 0]),
    "0-d logits, 1-d target": (X[0, 0], Y[:1]),
    "other batch": (X, torch.tensor([0, 1, 2])),
    "a target for a batch": (X, Y[0]),
    "a target of another axis": (X, Y[:, None]),
    "two targets without a batch": (X[0], Y),
    "a target with an axis, without a batch, smoothed": (X[0], Y[:1], None, None, -100, None, "mean", 0.1),
    "another length": (IMAGE[..., 0], torch.zeros(2, 5).long()),
    "height and width the other way": (IMAGE, torch.zeros(2, 5, 4).long()),
    "classes last": (torch.zeros(2, 4, 3), torch.zeros(2, 4).long()),
    "probabilities with classes last": (IMAGE[..., 0], torch.rand(2, 4, 3)),
    "negative target": (X, Y - 1),
    "target too large": (X, Y + 1),
    "target too large, smoothed": (X, Y + 1, None, None, -100, None, "mean", 0.1),
    "weights of other classes": (X, Y, torch.ones(2)),
    "weights of other classes, probabilities": (X, Q, torch.ones(1)),
    "a number as weight": (X, Y, 2.0),
    "double weight": (X, Y, torch.ones(3).double()),
    "integer weight": (X, Y, torch.ones(3).long()),
    "float weight of halves": (X.half(), Y, torch.ones(3)),
    "weight with a gradient": (X, Y, torch.ones(3, requires_grad=True)),
    "smoothing above 1": (X, Y, None, None, -100, None, "mean", 1.1),
    "smoothing above 1, probabilities": (X, Q, None, None, -100, None, "mean", 1.1),
    "smoothing of a string": (X, Y, None, None, -100, None, "mean", "0.1"),
    "smoothing of None": (X, Y, None, None, -100, None, "mean", None),
    "unknown reduction": (X, Y, None, None, -100, None, "mean_over_kept"),
    "reduction of None": (X, Y, None, None, -100, None, None),
    "ignore_index of None": (X, Y, None, None, None),
    "ignore_index of a float": (X, Y, None, None, 1.0),
    "ignore_index of True": (X, Y, None, None, True),
    "ignore_index too large": (X, Y, None, None, 2**70),
    "ignore_index of probabilities": (X, Q, None, None, 1),
    "NumPy logits": (X.numpy(), Y),
    "NumPy target": (X, Y.numpy()),
    "a list": ([[0.0, 1.0]], Y),
    "a number as target": (X[0], 1),
    "None": (X, None),
    "another device": (X, Y.to("meta")),
    "sparse": (X.to_sparse(), Y),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [cross_entropy, ours_as_theirs])
def test_what_pytorch_refuses_is_refused(name, function):
    with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever PyTorch says
        theirs(*BAD[name])
    with pytest.raises(expected.type) as found:
        function(*BAD[name])
    # In our style: what was given, and what is accepted.
    assert " is " in str(found.value) or str(found.value).startswith("mask"), found.value


def test_quirks_are_none_or_theirs():
    for function in (lambda quirks: cross_entropy(X, Y, quirks=quirks), lambda quirks: CrossEntropyLoss(quirks=quirks)):
        with pytest.raises(ValueError, match="quirks is 'ours'; it must be None or 'theirs'"):
            function("ours")
        with pytest.raises(TypeError, match="quirks is True"):
            function(True)


def test_what_pytorch_accepts_is_accepted():
    """Arguments of other types, and by position; deprecated ones warn."""
    for options in (
        {"label_smoothing": True},
        {"label_smoothing": torch.tensor(0.25)},
        {"ignore_index": torch.tensor(2)},
        {"target": Y.byte()},
    ):
        given = {"input": HALVES[:2], "target": Y} | options
        torch.testing.assert_close(cross_entropy(**given), theirs(**given))
    given = HALVES[:2], Y, torch.ones(3).double(), None, -100, None, "sum", 0.1
    torch.testing.assert_close(cross_entropy(*given), theirs(*given))
    torch.testing.assert_close(cross_entropy(HALVES[0], Y[:1]), theirs(HALVES[0], Y[:1]))
    for options in itertools.product((None, True, False), repeat=2):
        legacy = dict(zip(("size_average", "reduce"), options, strict=True))
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            expected = theirs(HALVES, TARGET, **legacy)
            count = len(given)
            torch.testing.assert_close(cross_entropy(HALVES, TARGET, **legacy), expected)
        assert len(given) == 2 * count
    with pytest.warns(UserWarning, match="elementwise_mean"):
        torch.testing.assert_close(cross_entropy(X, Y, reduction="elementwise_mean"), theirs(X, Y))


def test_probabilities_and_weights_promote_as_in_pytorch():
    for dtypes in itertools.product((torch.float16, torch.float32, torch.float64), repeat=3):
        x, q, w = (t.to(dtype) for t, dtype in zip((X + 1, Q, torch.ones(3)), dtypes, strict=True))
        expected = theirs(x, q, w)
        assert ours_as_theirs(x, q, w).dtype is expected.dtype
        wanted = torch.float32 if expected.dtype is torch.float16 else expected.dtype
        torch.testing.assert_close(cross_entropy(x, q, w), expected.to(wanted), rtol=1e-3, atol=0)


def test_autocast_computes_in_float32_as_pytorch_does():
    x, w = HALVES.bfloat16(), torch.ones(3)  # whose dtype is another
    with torch.autocast("cpu", torch.bfloat16):
        for function in (cross_entropy, ours_as_theirs):
            assert_outcome(outcome(function, x, TARGET, w), outcome(theirs, x, TARGET, w))
            assert outcome(function, x, TARGET, w.double()) is RuntimeError


def test_compiled_and_transformed():
    x, w = HALVES.clone().requires_grad_(), torch.tensor([1.0, 2, 3]).double()
    target = torch.tensor([0, -100, 2])
    options = {"weight": w, "label_smoothing": 0.1}
    for function in (cross_entropy, ours_as_theirs):
        expected = outcome(theirs, x, target, **options)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_outcome(outcome(compiled, x, target, **options), expected)
        gradient, value = torch.func.grad_and_value(lambda x, function=function: function(x, target, **options))(x)
        assert_outcome([value.detach(), 0.5 * gradient.detach()], expected)  # the upstream gradient of a number
        mapped = torch.func.vmap(lambda x, y, function=function: function(x, y, **options))
        torch.testing.assert_close(mapped(x[None], target[None])[0], expected[0], check_dtype=False)


def test_no_value_is_needed():
    for function in (theirs, cross_entropy, ours_as_theirs):
        loss = function(IMAGE.to("meta"), torch.zeros(2, 4, 5, device="meta").long(), reduction="none")
        assert (loss.shape, loss.device.type) == ((2, 4, 5), "meta")


def test_the_module_is_pytorchs():
    w = torch.tensor([1.0, 2, 3])
    for options in ({}, {"weight": w, "ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}):
        ours, expected = CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
        assert isinstance(ours, torch.nn.CrossEntropyLoss)
        assert list(ours.parameters()) == []
        assert list(ours.state_dict()) == list(expected.state_dict())
        ours.load_state_dict(expected.state_dict())
        torch.testing.assert_close(ours(X, Y), expected(X, Y))
    assert repr(ours) == "CrossEntropyLoss(weight=<3 classes>, ignore_index=2, reduction='sum', label_smoothing=0.1)"
    nan = CrossEntropyLoss(quirks="theirs")
    assert repr(nan) == "CrossEntropyLoss(quirks='theirs')"
    assert nan(X, Y * 0 - 100).isnan()
    assert ours.double().weight.dtype is torch.float64


def test_every_option_reaches_maskloss():
    """The mean of probabilities is over entries, whatever they weigh; of indices the weighted one."""
    w = torch.tensor([1.0, 2, 4]).double()
    one_hot = torch.eye(3).double()[TARGET]
    losses = torch.tensor([1.0, 2, 2]).double() * LOG_2
    torch.testing.assert_close(cross_entropy(HALVES, TARGET, w), (w * losses).sum() / 7)
    torch.testing.assert_close(cross_entropy(HALVES, one_hot, w), (w * losses).sum() / 3)
    torch.testing.assert_close(
        cross_entropy(HALVES, one_hot, w), ml.cross_entropy(HALVES, one_hot, class_weights=w) * 7 / 3
    )
