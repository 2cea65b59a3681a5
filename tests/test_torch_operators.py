"""The operators that torch.compile and torch.export call: what they promise a compiler, and what is asked of a loss."""

import functools
import importlib

import numpy as np
import pytest

import maskloss as ml
from tests.backends import of_library

ROWS, FEATURES, CLASSES = 12, 4, 9


def case(rows=ROWS, dtype="float64", seed=0):
    """Hidden states, kernel, bias, labels and mask; NaN and labels that are none where not kept."""
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(seed)
    mask = rng.random(rows) < 0.5
    mask[:2] = True, False
    hidden = np.where(mask[:, None], rng.normal(size=(rows, FEATURES)), np.nan)
    labels = np.where(mask, rng.integers(0, CLASSES, rows), -7)
    numbers = hidden, rng.normal(size=(CLASSES, FEATURES)), rng.normal(size=CLASSES)
    leaves = [torch.tensor(x, dtype=getattr(torch, dtype)).requires_grad_() for x in numbers]
    return torch, *leaves, torch.tensor(labels), torch.tensor(mask)


def logits_of(hidden, kernel, bias):
    return (hidden.detach() @ kernel.detach().T + bias.detach()).requires_grad_()


def compiled_by(torch, graphs):
    """Compiles as aot_eager does, and keeps what is compiled: each forward, and each backward."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def keep(graph, _):
        graphs.append(graph.code)
        return make_boxed_func(graph)

    return functools.partial(torch.compile, fullgraph=True, backend=aot_autograd(fw_compiler=keep))


@pytest.fixture
def torch_cpu(backend, monkeypatch):
    of_library(backend, "torch")
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.torch"), "LEAST_SKIPPED", 1)


OPTIONS = (
    {},
    {"reduction": "sum", "z_loss": 0.1},
    {"reduction": "none"},
    {"label_smoothing": 0.2, "softcap": 3.0, "reduction": "mean_over_all"},
    {"with_stats": True},
    {"denominator": 7.0},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear(torch_cpu, options):
    """No product in the graph: the logits are never made; value and gradients those of eager."""
    torch, hidden, kernel, bias, labels, mask = case()
    weights, graphs = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64).requires_grad_(), []

    def loss(hidden, kernel, bias, weights):
        return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask, weights=weights, **options)

    leaves, found = (hidden, kernel, bias, weights), []
    for function in (compiled_by(torch, graphs)(loss), loss):
        value = function(*leaves)
        stats = value[1] if options.get("with_stats") else None
        # What comes from above is neither 1 nor, with the statistics, the loss' alone.
        of_all = (value * 3.0).sum() if stats is None else 3.0 * value[0] + 0.5 * stats.total
        gradients = torch.autograd.grad(of_all, leaves, retain_graph=True)
        again = torch.autograd.grad(of_all, leaves)
        found.append((value, gradients, again))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    assert "maskloss.projection" in graphs[0]
    assert not any("aten.mm" in graph or "matmul" in graph for graph in graphs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_logits(torch_cpu, options, masked):
    """With a mask an operator, without one an expression whose gradient keeps no more than eager's."""
    torch, hidden, kernel, bias, labels, mask = case()
    graphs, leaf = [], logits_of(torch.nan_to_num(hidden), kernel, bias)
    options = {**options, "mask": mask} if masked else options
    labels = labels if masked else labels.clip(0)

    def loss(logits):
        return ml.cross_entropy(logits, labels, **options)

    found = []
    for function in (compiled_by(torch, graphs)(loss), loss):
        value = function(leaf)
        of_all = (value * 3.0).sum() if isinstance(value, torch.Tensor) else 3.0 * value[0] + 0.5 * value[1].total
        found.append((value, torch.autograd.grad(of_all, leaf)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    assert ("maskloss.rows" in graphs[0]) is masked


def test_infinite_logits(torch_cpu):
    """Of a row the fused expression takes off its greatest logit as it is, and mends inf - inf: as eager."""
    torch = importlib.import_module("torch")
    inf, nan = torch.inf, torch.nan
    rows = [[-inf, -inf, -inf], [inf, 0.0, 1.0], [-inf, 0.0, 1.0], [1e30, -1e30, 0.0], [nan, 0.0, 0.0], [1.0, 2.0, 3.0]]
    leaf, labels = torch.tensor(rows, requires_grad=True), torch.tensor([0, 1, 0, 2, 0, 2])

    def loss(x):
        return ml.cross_entropy(x, labels, reduction="none")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = [(f(leaf), *torch.autograd.grad(f(leaf).sum(), leaf)) for f in (compiled, loss)]
    torch.testing.assert_close(*found, equal_nan=True)


def test_soft_labels_and_a_class_mask(torch_cpu):
    torch, hidden, kernel, bias, _, mask = case()
    graphs, leaf = [], logits_of(torch.nan_to_num(hidden), kernel, bias)
    targets = torch.softmax(leaf.detach().sin(), -1).requires_grad_()
    class_mask = torch.arange(CLASSES) != 3
    class_weights = torch.linspace(0.5, 1.5, CLASSES, dtype=torch.float64).requires_grad_()

    def of_logits(logits, targets, class_weights):
        options = {"mask": mask, "class_mask": class_mask, "class_weights": class_weights, "label_smoothing": 0.1}
        return ml.cross_entropy(logits, targets, **options)

    def of_hidden(hidden, kernel, targets):
        return ml.linear_cross_entropy(hidden, kernel, targets, mask=mask, class_mask=class_mask)

    for loss, leaves in ((of_logits, (leaf, targets, class_weights)), (of_hidden, (hidden, kernel, targets))):
        pairs = [
            (f(*leaves), torch.autograd.grad(f(*leaves), leaves)) for f in (compiled_by(torch, graphs)(loss), loss)
        ]
        torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-14)
    assert any("maskloss.rows" in graph for graph in graphs)
    assert any("maskloss.projection" in graph for graph in graphs)


def test_entropy_and_log_probs(torch_cpu):
    torch, hidden, kernel, _, labels, mask = case()
    graphs = []

    def values(hidden, kernel):
        logits = torch.where(mask.unsqueeze(-1), hidden, 0.0) @ kernel.T
        return (
            ml.entropy(logits, mask=mask).sum()
            + ml.linear_entropy(hidden, kernel, mask=mask).square().sum()
            + ml.label_log_probs(logits, labels, mask=mask).exp().sum()
            + ml.linear_label_log_probs(hidden, kernel, labels, mask=mask).exp().sum()
        )

    leaves = hidden, kernel
    pairs = [
        (f(*leaves), torch.autograd.grad(f(*leaves), leaves)) for f in (compiled_by(torch, graphs)(values), values)
    ]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-14)
    assert graphs[0].count("maskloss.rows") == graphs[0].count("maskloss.projection") == 2


@pytest.mark.parametrize("linear", [False, True])
def test_compilations(torch_cpu, linear):
    """At most two over five batch sizes, and five shares of kept rows."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch, _, kernel, bias, _, _ = case()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(hidden, kernel, labels, mask):
        if linear:
            return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask)
        return ml.cross_entropy(torch.where(mask.unsqueeze(-1), hidden, 0.0) @ kernel.T, labels, mask=mask)

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for seed, rows in enumerate((5, 8, 13, 21, 34)):
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            _, hidden, _, _, labels, _ = case(rows, seed=seed)
            mask = (torch.arange(rows) < share * rows) & (labels >= 0)
            given = hidden, kernel, labels, mask
            results = [torch.autograd.grad(f(*given), (hidden, kernel)) for f in (compiled, loss)]
            torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    assert counter.frame_count <= 2


def own(torch, labels, targets, mask, class_mask, softcap=None):
    return labels, targets, mask, class_mask, softcap, torch.float64


@pytest.mark.parametrize("targets_too", [False, True])
def test_opcheck(torch_cpu, targets_too):
    """Schema, registration of the derivative, shapes told to a compiler, and aot_autograd with dynamic shapes."""
    torch, hidden, kernel, bias, labels, mask = case()
    hidden = torch.nan_to_num(hidden.detach()).requires_grad_()
    leaf = logits_of(hidden, kernel, bias)
    targets = torch.softmax(leaf.detach(), -1).requires_grad_() if targets_too else None
    given = own(torch, None if targets_too else labels.clip(0), targets, mask, None)
    listed = importlib.import_module("maskloss._bindings.torch_operators").listed
    check, operators, of = torch.library.opcheck, torch.ops.maskloss, "analytic softmax"
    for with_lse, for_backward in ((True, True), (False, True)):
        check(operators.rows.default, (of, leaf, *given, with_lse, for_backward))
    out = operators.rows(of, leaf, *given, True, True)
    detached = [x.detach() for x in out]
    g = listed([x.detach() if i == int(targets_too) else None for i, x in enumerate(out[:3])], leaf)
    plain = [None if x is None else x.detach() if isinstance(x, torch.Tensor) else x for x in given]
    check(operators.rows_backward.default, (of, leaf.detach(), *plain, detached, g, targets_too))
    parts = "hidden,kernel,bias" + ",targets" * targets_too
    of_all = of, hidden, kernel, bias, *given, 5, parts
    each = torch.where(mask, 0.25, 0.0).double()
    known = listed((None, each, None) if targets_too else (each, None, None), hidden)
    for before in ([], known):
        check(operators.projection.default, (*of_all, labels.clip(0), before, False))
    out = operators.projection(*of_all, None, [], False)
    of_plain = of, hidden.detach(), kernel.detach(), bias.detach(), *plain, 5, parts
    detached = [x.detach() for x in out[:-6]]
    check(operators.projection_backward.default, (*of_plain, detached, g))


def laid_out(torch, order):
    """Logits (2, 6, 3, 5), whose class axis is 1."""
    if order == "strided":
        return torch.randn(2, 6, 3, 10)[..., ::2]
    x = torch.randn(2, 6, 3, 5)
    return x.to(memory_format=torch.channels_last) if order == "channels last" else x


@pytest.mark.parametrize("order", ["in planes", "channels last", "strided"])
def test_the_order_of_memory_is_as_a_compiler_was_told(torch_cpu, monkeypatch, order):
    """Inductor asks for the strides that it planned with."""
    torch, *_ = case()
    monkeypatch.setattr(importlib.import_module("maskloss._engine.walk"), "LEAST_ROWS", 1)
    operators, check = torch.ops.maskloss, torch.library.opcheck
    x, labels, mask = laid_out(torch, order), torch.randint(6, (2, 3, 5)), torch.arange(30).reshape(2, 3, 5) % 4 > 0
    moved, of, given = x.movedim(1, -1), "analytic softmax", own(torch, labels, None, mask, None)
    check(operators.rows.default, (of, moved, *given, True, True), test_utils="test_faketensor")
    out = operators.rows(of, moved, *given, True, True)
    listed = importlib.import_module("maskloss._bindings.torch_operators").listed
    g = listed([torch.ones_like(out[0]), None, None], moved)
    check(operators.rows_backward.default, (of, moved, *given, out, g, False), test_utils="test_faketensor")

    of_reproducible = importlib.import_module("maskloss._bindings.torch_reproducible")
    others = importlib.import_module("maskloss.losses").DEFAULTS | {"mask": None, "axis": 1, "reproducible": True}
    words = of_reproducible.in_words("loss", others, ("logits", "labels", "mask"))
    _, *saved = operators.reproducible(words, [x, labels, mask])
    of_loss = words, [x, labels, mask], "logits", saved, [torch.ones(())]
    check(operators.reproducible_gradients.default, of_loss, test_utils="test_faketensor")


def test_a_derivative_of_a_derivative_says_what_it_lacks(torch_cpu):
    torch, hidden, kernel, bias, labels, mask = case()
    leaf = logits_of(torch.nan_to_num(hidden), kernel, bias)
    nll = torch.ops.maskloss.rows("analytic softmax", leaf, *own(torch, labels.clip(0), None, mask, None), False, True)[
        0
    ]
    (first,) = torch.autograd.grad(nll.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"maskloss\.rows_backward"):
        first.sum().backward()


def test_tied_kernel_autocast_and_checkpoint(torch_cpu):
    """The kernel embeds and projects, in bfloat16 layers under autocast, checkpointed: as eager, to rounding."""
    from torch.utils.checkpoint import checkpoint

    torch, _, kernel, _, labels, mask = case(dtype="float32")
    layer, tokens = torch.nn.Linear(FEATURES, FEATURES), torch.arange(ROWS) % CLASSES

    def head(hidden, kernel):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)

    def step(kernel):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = layer(torch.nn.functional.embedding(tokens, kernel))
            return checkpoint(head, hidden, kernel, use_reentrant=False) + head(hidden, kernel)

    leaves = kernel, *layer.parameters()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [(f(kernel), torch.autograd.grad(f(kernel), leaves)) for f in (compiled, step)]
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)  # bfloat16 layers, which a compiler rounds otherwise


def test_export(torch_cpu):
    """The operator stays in the program, with a batch of any size; 'autodiff' exports an expression."""
    torch, hidden, kernel, _, labels, mask = case()

    class Loss(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.kernel, self.options = torch.nn.Parameter(kernel.detach()), options

        def forward(self, hidden, labels, mask):
            return ml.linear_cross_entropy(hidden, self.kernel, labels, mask=mask, **self.options)

    given, rows = (hidden.detach(), labels, mask), torch.export.Dim("rows", min=2, max=100)
    shapes = {name: {0: rows} for name in ("hidden", "labels", "mask")}
    for options, inside in (({}, True), ({"implementation": "autodiff"}, False)):
        program = torch.export.export(Loss(**options), given, dynamic_shapes=shapes)
        assert ("maskloss.projection" in program.graph_module.code) is inside
        _, hidden, _, _, labels, mask = case(20, seed=1)
        expected = ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)
        torch.testing.assert_close(program.module()(hidden, labels, mask), expected)


def test_compiled_autograd_and_data_parallel(torch_cpu, tmp_path):
    torch, hidden, kernel, _, labels, mask = case()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = torch.nn.Parameter(kernel.detach().clone())

        def forward(self, hidden, labels, mask):
            return ml.linear_cross_entropy(hidden, self.kernel, labels, mask=mask)

    expected = torch.autograd.grad(ml.linear_cross_entropy(hidden, kernel, labels, mask=mask), (hidden, kernel))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Model()
        parallel = torch.compile(torch.nn.parallel.DistributedDataParallel(model), backend="aot_eager")
        parallel(hidden, labels, mask).backward()
        torch.testing.assert_close((hidden.grad, model.kernel.grad), expected)
    finally:
        torch.distributed.destroy_process_group()
    hidden.grad, model = None, Model()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: model(hidden, labels, mask).backward(), backend="aot_eager")()
    torch.testing.assert_close((hidden.grad, model.kernel.grad), expected)


def test_transformations_inside(torch_cpu):
    """What goes through no operator, as functorch's transformations, is the expression."""
    torch, hidden, kernel, _, labels, mask = case()
    h = torch.nan_to_num(hidden.detach())

    def loss(hidden, kernel, labels, mask):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)

    stacked = torch.stack([h, 2 * h])
    for function, given in (
        (torch.func.grad(loss, (0, 1)), (h, kernel.detach(), labels, mask)),
        (torch.func.vmap(loss, (0, None, None, None)), (stacked, kernel.detach(), labels, mask)),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), function(*given))


def test_validation_under_a_compiler(torch_cpu):
    """A kept label that is none, which cannot be read: NaN in the loss, and in the gradient of its row alone."""
    torch, hidden, kernel, _, labels, mask = case()
    kept = torch.nonzero(mask)[0, 0]
    labels = labels.index_fill(0, kept.reshape(1), CLASSES)

    def loss(hidden, kernel):
        return ml.linear_cross_entropy(hidden, kernel.detach(), labels, mask=mask)

    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden, kernel)
    (gradient,) = torch.autograd.grad(value, hidden)
    assert value.isnan()
    bad = gradient.isnan().any(-1)
    assert bad[kept]
    assert bad.sum() == 1
