"""maskloss.torch.LinearCrossEntropyLoss: whose kernel it is, tied or owned, compiled, and sharded by FSDP2."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import maskloss as ml  # noqa: E402
from maskloss.torch import LinearCrossEntropyLoss  # noqa: E402
from tests.backends import with_processes  # noqa: E402
from tests.programs import PROCESSES, on_processes  # noqa: E402

pytestmark = pytest.mark.of_backend("torch")

CLASSES, FEATURES = 7, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(*shape, seed=0):
    return nn.Parameter(normal(*shape, seed=seed))


HIDDEN = normal(3, 5, FEATURES, seed=1)
LABELS = torch.arange(15).reshape(3, 5) % CLASSES
MASK = LABELS != 2


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Embedding(CLASSES, FEATURES, dtype=torch.float64)
        self.trunk = nn.Linear(FEATURES, FEATURES, dtype=torch.float64)
        self.loss = LinearCrossEntropyLoss(self.embed, **options)

    def forward(self, tokens, labels, **given):
        return self.loss(self.trunk(self.embed(tokens)), labels, **given)


def linear(bias=True):
    return nn.Linear(FEATURES, CLASSES, bias=bias, dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (parameter(CLASSES, FEATURES), None),
        lambda: (parameter(CLASSES, FEATURES), parameter(CLASSES, seed=2)),
        lambda: (linear(), None),
        lambda: (linear(bias=False), parameter(CLASSES, seed=2)),
        lambda: (nn.Embedding(CLASSES, FEATURES, dtype=torch.float64), None),
    ],
    ids=["Parameter", "Parameter and bias", "Linear", "Linear and bias", "Embedding"],
)
def test_it_is_the_function_of_its_kernel(make):
    kernel, bias = make()
    loss = LinearCrossEntropyLoss(kernel, bias, chunk_size=4)
    kernel, bias = (kernel, bias) if isinstance(kernel, nn.Parameter) else (kernel.weight, bias)
    bias = getattr(loss.projection, "bias", None) if bias is None else bias
    assert {id(p) for p in loss.parameters()} == {id(p) for p in (kernel, bias) if p is not None}
    found = loss(HIDDEN, LABELS, mask=MASK)
    expected = ml.cross_entropy(HIDDEN @ kernel.T + (0 if bias is None else bias), LABELS, mask=MASK)
    torch.testing.assert_close(found, expected)
    for p, q in zip(*(torch.autograd.grad(x, list(loss.parameters())) for x in (found, expected)), strict=True):
        torch.testing.assert_close(p, q)


def test_every_option_arrives():
    class_weights = normal(CLASSES, seed=3).abs()
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "ignore_index": 2, "reduction": "mean_over_kept"}
    kernel = parameter(FEATURES, CLASSES)
    loss = LinearCrossEntropyLoss(kernel, kernel_layout="dv", class_weights=class_weights, **options)
    given = {"weights": normal(3, 5, seed=4), "class_mask": torch.ones(CLASSES).bool(), "denominator": 7.0}
    found, stats = loss(HIDDEN, LABELS, mask=MASK, with_stats=True, **given)
    expected, stats_expected = ml.cross_entropy(
        HIDDEN @ kernel, LABELS, mask=MASK, with_stats=True, class_weights=class_weights, **given, **options
    )
    torch.testing.assert_close([found, *stats], [expected, *stats_expected])
    assert list(loss.state_dict()) == ["kernel", "class_weights"]
    assert repr(loss) == (
        "LinearCrossEntropyLoss(classes=7, features=4, bias=False, class_weights=True, kernel_layout='dv', "
        "ignore_index=2, label_smoothing=0.1, z_loss=0.01, softcap=3.0, reduction='mean_over_kept')"
    )


def test_a_tied_kernel_is_one_parameter():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["embed.weight", "trunk.weight", "trunk.bias"]
    tied = LinearCrossEntropyLoss(model.embed.weight)
    assert [*nn.ModuleList([model, tied]).parameters()] == [*model.parameters()]
    # Both uses of the weight reach its gradient.
    logits = model.trunk(model.embed(LABELS)) @ model.embed.weight.T
    parameters = list(model.parameters())
    expected = torch.autograd.grad(ml.cross_entropy(logits, LABELS, mask=MASK), parameters)
    found = torch.autograd.grad(model(LABELS, LABELS, mask=MASK), parameters)
    torch.testing.assert_close(found, expected)


def test_a_weight_that_is_replaced_is_followed():
    """As transformers ties weights after a model was made, and to_empty makes them after a checkpoint was read."""
    model = Tied()
    model.embed.weight = parameter(CLASSES, FEATURES, seed=5)
    expected = ml.cross_entropy(HIDDEN @ model.embed.weight.T, LABELS)
    torch.testing.assert_close(model.loss(HIDDEN, LABELS), expected)
    with torch.device("meta"):
        empty = Tied()
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    torch.testing.assert_close(empty.loss(HIDDEN, LABELS), expected)
    for other in (copy.deepcopy(model), copy.deepcopy(model).float()):
        assert other.loss.projection is other.embed
    assert other.loss(HIDDEN.float(), LABELS).dtype is torch.float32


@pytest.mark.parametrize("backend_name", ["aot_eager"])
def test_compiled(backend_name):
    model = Tied(ignore_index=2, class_weights=normal(CLASSES).abs())
    parameters = list(model.parameters())
    expected = model(LABELS, LABELS)
    compiled = torch.compile(model, fullgraph=True, backend=backend_name)(LABELS, LABELS)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, parameters), torch.autograd.grad(expected, parameters))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: LinearCrossEntropyLoss(normal(7, 4)), TypeError, "it must be a torch.nn.Parameter, a torch.nn.Linear"),
        (lambda: LinearCrossEntropyLoss(nn.Conv1d(4, 7, 1)), TypeError, "kernel is Conv1d"),
        (lambda: LinearCrossEntropyLoss(parameter(7, 4), normal(7)), TypeError, "bias is a PyTorch array"),
        (lambda: LinearCrossEntropyLoss(linear(), parameter(7)), ValueError, "bias is given beside a kernel"),
        (lambda: LinearCrossEntropyLoss(linear(), kernel_layout="dv"), ValueError, "of a Linear it is 'vd'"),
        (lambda: LinearCrossEntropyLoss(linear(), reduction="avg")(HIDDEN, LABELS), ValueError, "reduction is 'avg'"),
        (lambda: LinearCrossEntropyLoss(linear())(HIDDEN[..., 1:], LABELS), ValueError, "kernel is a PyTorch array"),
    ],
)
def test_bad_calls(make, error, text):
    with pytest.raises(error, match=text):
        make()


class LoRA(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden) + 1.0


class Wrapped(nn.Module):
    """As PEFT replaces a Linear: with its weight, and something beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias


def test_what_a_projection_adds_in_its_own_forward_is_not_left_out():
    """Its weight alone would be another head, without a word."""
    pruned, old = linear(), linear()
    prune.random_unstructured(pruned, "weight", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(old)
    for head in (LoRA(FEATURES, CLASSES), pruned, old):
        with pytest.raises(TypeError, match=r"whose forward does more than .*parametrizations"):
            LinearCrossEntropyLoss(head)
    loss = LinearCrossEntropyLoss(linear())
    loss.projection = Wrapped(loss.projection)
    with pytest.raises(TypeError, match=r"\(Wrapped\); it must be a torch\.nn\.Parameter"):
        loss(HIDDEN, LABELS)
    loss = LinearCrossEntropyLoss(linear())
    prune.random_unstructured(loss.projection, "weight", 0.5)
    with pytest.raises(TypeError, match="whose forward does more than"):
        loss(HIDDEN, LABELS)


def test_a_parametrized_weight_is_read_as_it_is():
    head = nn.utils.parametrizations.weight_norm(linear())
    expected = ml.cross_entropy(head(HIDDEN), LABELS)
    loss = LinearCrossEntropyLoss(head)
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        found, parameters = function(HIDDEN, LABELS), list(head.parameters())
        torch.testing.assert_close(found, expected)
        for p, q in zip(
            *(torch.autograd.grad(x, parameters, retain_graph=True) for x in (found, expected)), strict=True
        ):
            torch.testing.assert_close(p, q)


FSDP = """
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from maskloss.torch import LinearCrossEntropyLoss
    from tests.drop_in.test_linear_module import CLASSES, FEATURES, Tied

    tokens = torch.randint(CLASSES, (8, 5), generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.6
    own = torch.arange(8).chunk(processes)[rank]
    total = ml.denominator(tokens, mask=mask)


    def made():
        torch.manual_seed(0)
        return Tied(reduction="mean")


    def stepped(model, tokens, mask, share):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            # fully_shard takes the mean of the processes' gradients.
            (model(tokens, tokens, mask=mask, denominator=total) * share).backward()
            optimizer.step()
        return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


    one = stepped(made(), tokens, mask, 1)


    def whole(model):
        fully_shard(model)


    def trunk_apart(model):
        fully_shard(model.trunk)
        fully_shard(model)


    for shard in (whole, trunk_apart):
        model = made()
        shard(model)
        torch.testing.assert_close(stepped(model, tokens[own], mask[own], processes), one)
        assert len(one) == len(list(model.parameters())) == 3

    # Another share is seen, in each process.
    model = made()
    whole(model)
    try:
        torch.testing.assert_close(stepped(model, tokens[own], mask[own], 1), one)
    except AssertionError as error:
        assert "Mismatched elements" in str(error), error
    else:
        raise AssertionError("the comparison cannot fail")

    # An untied head, sharded with its loss.
    hidden = normal(8, 5, FEATURES)
    loss = LinearCrossEntropyLoss(nn.Linear(FEATURES, CLASSES, dtype=torch.float64))
    for p in loss.parameters():
        dist.broadcast(p.detach(), 0)
    expected = torch.autograd.grad(loss(hidden, tokens, mask=mask), list(loss.parameters()))
    fully_shard(loss)
    (loss(hidden[own], tokens[own], mask=mask[own], denominator=total) * processes).backward()
    torch.testing.assert_close([p.grad.full_tensor() for p in loss.parameters()], list(expected))

    # A head that is sharded by itself is not whole where the loss reads it.
    head = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
    fully_shard(head)
    try:
        LinearCrossEntropyLoss(head)(hidden[own], tokens[own])
    except ValueError as error:
        assert "fully_shard the loss in its place" in str(error), error
    else:
        raise AssertionError("a kernel in parts was read")
"""


@pytest.fixture
def distributed(backend):
    with_processes(backend)


def test_fully_sharded_is_one_process(distributed, tmp_path):
    codes, errors = on_processes(tmp_path, FSDP)
    assert codes == [0] * PROCESSES, "\n".join(errors)
