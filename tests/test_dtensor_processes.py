"""DTensor on four processes: split or whole, the same number, and nothing of the logits' size goes from one to another.

Each process is a program of its own. Sizes are uneven: of the classes, and of the time steps, one process has none.
"""

import textwrap

import pytest

from tests.backends import with_processes
from tests.programs import PROCESSES, on_processes

BEGIN = """
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    entries, features, classes = (4, 5), 3, 6
    labels = torch.randint(classes, entries, generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, classes)
    arrays = {
        "mask": torch.rand(entries, generator=generator) < 0.6,
        "weights": normal(*entries),
        "class_weights": normal(classes).abs(),
        "class_mask": (normal(*entries, classes) < 1) | one_hot.bool(),
    }
    logits, soft = normal(*entries, classes), torch.softmax(normal(*entries, classes), -1)
    hidden, kernel, bias = normal(*entries, features), normal(classes, features), normal(classes)
    line = dist.init_device_mesh("cpu", (4,))
    square = dist.init_device_mesh("cpu", (2, 2))
    MESHES = {  # and how many collectives for the loss and its gradient
        "rows": (line, [Shard(0)], 0),
        "time": (line, [Shard(1)], 0),
        "classes": (line, [Shard(2)], 2),
        "rows and classes": (square, [Shard(0), Shard(2)], 2),
    }
    OPTIONS = (
        ((), {}),
        (("mask",), {"with_stats": True}),
        (("mask", "weights"), {"reduction": "none", "label_smoothing": 0.1}),
        (("class_weights", "class_mask"), {"label_smoothing": 0.1, "with_stats": True}),
        ((), {"z_loss": 0.1, "softcap": 3.0, "reduction": "mean_over_sequences"}),
        (("mask",), {"reduction": "mean_over_sequences"}),
        ((), {"ignore_index": 3, "reduction": "mean_over_kept"}),
    )


    def whole(x):
        return x.full_tensor() if hasattr(x, "full_tensor") else x


    def close(found, wanted, what):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(whole(a), b, rtol=1e-12, atol=1e-14, msg=lambda text: f"{what}: {text}")


    def losses(function, *arrays, variables=1, **options):
        result = function(*arrays, **options)
        loss, *stats = result if options.get("with_stats") else (result,)
        gradients = torch.autograd.grad(loss.sum(), arrays[:variables])
        return [loss.detach(), *gradients, *(x.detach() for s in stats for x in s)]
"""

LOGITS = """
    for name, (mesh, placements, most) in MESHES.items():
        without_classes = [Replicate() if p == Shard(2) else p for p in placements]
        of_classes = [Shard(0) if p == Shard(2) else Replicate() for p in placements]


        def split(x):
            kind = placements if x.ndim == 3 else without_classes if x.ndim == 2 else of_classes
            return distribute_tensor(x.clone(), mesh, kind)


        # The last by DTensor's own operations.
        for names, options in (*OPTIONS, (("mask",), {"with_stats": True, "implementation": "autodiff"})):
            for targets in (labels, soft):
                if targets is soft and "ignore_index" in options:
                    continue
                given = {n: arrays[n] for n in names}
                if targets is soft and "class_mask" in given:
                    given["class_mask"] = torch.ones_like(given["class_mask"])
                wanted = losses(ml.cross_entropy, logits.clone().requires_grad_(), targets, **given, **options)
                there = {n: split(a) for n, a in given.items()}
                x, y = split(logits).requires_grad_(), split(targets)
                with Collectives() as moved:
                    found = losses(ml.cross_entropy, {before}, y, **there, **options)
                close(found, wanted, (name, names, options))
                assert found[1].placements == x.placements, (name, names, options, found[1].placements)
                # A few numbers per entry, or per class, but not per both.
                if not names and targets is labels and options.get("reduction") != "mean_over_sequences":
                    assert len(moved.sizes) <= most, (name, options, moved.sizes)
                assert max(moved.sizes, default=0) <= 4 * labels.numel(), (name, names, options, moved.sizes)
        twice = []
        for x, y in ((logits.clone(), labels), (split(logits), split(labels))):
            x.requires_grad_()
            (g,) = torch.autograd.grad(ml.cross_entropy(x, y, z_loss=0.1), x, create_graph=True)
            twice.append(torch.autograd.grad((g * g).sum(), x))
        close(*reversed(twice), (name, "twice"))
        x, y = split(logits), split(labels)
        close([ml.label_log_probs(x, y), ml.entropy(x)], [ml.label_log_probs(logits, labels), ml.entropy(logits)], name)
        close([ml.denominator(y, mask=split(arrays["mask"]), reduction=r) for r in ("mean", "mean_over_sequences")],
              [ml.denominator(labels, mask=arrays["mask"], reduction=r) for r in ("mean", "mean_over_sequences")], name)
"""

LINEAR = """
    WAYS = {  # what of hidden and kernel, and how many collectives for the loss and both gradients
        "rows": (line, [Shard(0)], [Replicate()], 1),
        "time": (line, [Shard(1)], [Replicate()], 1),
        "classes": (line, [Replicate()], [Shard(0)], 3),
        "rows and classes": (square, [Shard(0), Replicate()], [Replicate(), Shard(0)], 4),
        "both over one": (line, [Shard(1)], [Shard(0)], 4),  # the hidden states are gathered
        "everywhere": (line, [Replicate()], [Replicate()], 0),
        "features": (line, [Shard(2)], [Shard(1)], 5),  # and the kernel's classes split in their place
    }
    for name, (mesh, of_hidden, of_kernel, most) in WAYS.items():
        pairs = list(zip(of_hidden, of_kernel, strict=True))
        of_entries = [h if k == Replicate() else Replicate() for h, k in pairs]
        of_both = [h if k == Replicate() else Shard(2) for h, k in pairs]
        of_classes = [k if k == Replicate() else Shard(0) for k in of_kernel]
        kinds = {"class_weights": of_classes, "class_mask": of_both}


        def split(x, placements):
            return distribute_tensor(x.clone(), mesh, placements)


        for names, options in OPTIONS:
            given = {n: arrays[n] for n in names}
            variables = [x.clone().requires_grad_() for x in (hidden, kernel)]
            wanted = losses(ml.linear_cross_entropy, *variables, labels, variables=2, bias=bias, **given, **options)
            there = {n: split(a, kinds.get(n, of_entries)) for n, a in given.items()}
            h, k = split(hidden, of_hidden).requires_grad_(), split(kernel, of_kernel).requires_grad_()
            b, y = split(bias, of_classes), split(labels, of_entries)
            with Collectives() as moved:
                found = losses(ml.linear_cross_entropy, h, k, y, variables=2, bias=b, **there, **options)
            close(found, wanted, (name, names, options))
            assert [x.placements for x in found[1:3]] == [h.placements, k.placements], (name, names, options)
            if not names and options.get("reduction") != "mean_over_sequences":
                assert len(moved.sizes) <= most, (name, names, options, moved.sizes)
            assert max(moved.sizes, default=0) <= 4 * labels.numel(), (name, names, options, moved.sizes)
        twice = []
        for place in (lambda x, placements: x.clone(), split):
            h, k, y = place(hidden, of_hidden).requires_grad_(), place(kernel, of_kernel), place(labels, of_entries)
            (g,) = torch.autograd.grad(ml.linear_cross_entropy(h, k, y), h, create_graph=True)
            twice.append(torch.autograd.grad((g * g).sum(), h))
        close(*reversed(twice), (name, "twice"))
"""

COMPILED = """
    def compiled(function):
        torch._dynamo.reset()
        # What is asked is what is traced: four Inductors on two cores take a minute.
        return torch.compile(function, fullgraph=True, backend="aot_eager")


    def loss(x, y, mask):
        loss, stats = ml.cross_entropy(x, y, mask=mask, z_loss=0.1, with_stats=True)
        # An output that has a derivative must take part: https://github.com/pytorch/pytorch/issues/172556
        return loss, [s.detach() for s in stats]


    def linear(h, k, y, mask):
        return ml.linear_cross_entropy(h, k, y, mask=mask, chunk_size=2)


    mask = arrays["mask"]
    x = logits.clone().requires_grad_()
    wanted, stats = loss(x, labels, mask)
    wanted = [wanted.detach(), *torch.autograd.grad(wanted, x), *stats]
    h, k = hidden.clone().requires_grad_(), kernel.clone().requires_grad_()
    wanted_linear = linear(h, k, labels, mask)
    wanted_linear = [wanted_linear.detach(), *torch.autograd.grad(wanted_linear, (h, k))]
    y, m = (distribute_tensor(a, line, [Replicate()]) for a in (labels, mask))
    x = distribute_tensor(logits.clone(), line, [Shard(2)]).requires_grad_()
    found, stats = compiled(loss)(x, y, m)
    close([found, *torch.autograd.grad(found, x), *stats], wanted, "logits")
    h = distribute_tensor(hidden.clone(), line, [Replicate()]).requires_grad_()
    k = distribute_tensor(kernel.clone(), line, [Shard(0)]).requires_grad_()
    found = compiled(linear)(h, k, y, m)
    close([found, *torch.autograd.grad(found, (h, k))], wanted_linear, "linear")
"""


@pytest.fixture(autouse=True)
def distributed(backend):
    with_processes(backend)


GATHERED = LOGITS.replace("{before}", "x.redistribute(placements=[Replicate()] * mesh.ndim)")
# What is asked of the logits can fail, in each process at the same place.
SEEN = f"""
try:
{textwrap.indent(textwrap.dedent(GATHERED), " " * 4)}
except AssertionError as error:
    assert "('rows'" in str(error), error
else:
    raise AssertionError("a gather was not seen")
"""


def test_split_is_whole(tmp_path):
    """One start of the processes for all that is asked: each imports for seconds."""
    codes, errors = on_processes(tmp_path, BEGIN, LOGITS.replace("{before}", "x"), LINEAR, SEEN, COMPILED)
    assert codes == [0] * PROCESSES, "\n".join(errors)
