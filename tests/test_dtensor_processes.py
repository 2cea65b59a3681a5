"""DTensor on four processes: split or whole, the same number, and nothing of the logits' size goes from one to another.

Each process is a program of its own. Sizes are uneven: of the classes, and of the time steps, one process has none.
"""

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
    MESHES = {
        "rows": (line, [Shard(0)]),
        "time": (line, [Shard(1)]),
        "classes": (line, [Shard(2)]),
        "rows and classes": (dist.init_device_mesh("cpu", (2, 2)), [Shard(0), Shard(2)]),
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


    class Moved(TorchDispatchMode):
        \"""The most numbers that any collective took or gave.\"""

        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if "c10d" in function.namespace and "wait" not in str(function):
                sizes = [x.numel() for x in (*args, out) if isinstance(x, torch.Tensor)]
                self.most = max(self.most, *sizes)
            return out


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
    for name, (mesh, placements) in MESHES.items():
        without_classes = [Replicate() if p == Shard(2) else p for p in placements]
        of_classes = [Shard(0) if p == Shard(2) else Replicate() for p in placements]


        def split(x):
            kind = placements if x.ndim == 3 else without_classes if x.ndim == 2 else of_classes
            return distribute_tensor(x.clone(), mesh, kind)


        for names, options in OPTIONS:
            for targets in (labels, soft):
                if targets is soft and "ignore_index" in options:
                    continue
                given = {n: arrays[n] for n in names}
                if targets is soft and "class_mask" in given:
                    given["class_mask"] = torch.ones_like(given["class_mask"])
                wanted = losses(ml.cross_entropy, logits.clone().requires_grad_(), targets, **given, **options)
                there = {n: split(a) for n, a in given.items()}
                x, y = split(logits).requires_grad_(), split(targets)
                with Moved() as moved:
                    found = losses(ml.cross_entropy, {before}, y, **there, **options)
                close(found, wanted, (name, names, options))
                assert found[1].placements == x.placements, (name, names, options, found[1].placements)
                # Of numbers per entry, or per class, but not per both.
                assert moved.most <= labels.numel(), (name, names, options, moved.most)
        x, y = split(logits), split(labels)
        close([ml.label_log_probs(x, y), ml.entropy(x)], [ml.label_log_probs(logits, labels), ml.entropy(logits)], name)
        close([ml.denominator(y, mask=split(arrays["mask"]), reduction=r) for r in ("mean", "mean_over_sequences")],
              [ml.denominator(labels, mask=arrays["mask"], reduction=r) for r in ("mean", "mean_over_sequences")], name)
"""

LINEAR = """
    WAYS = {
        "rows": ([Shard(0)], [Replicate()]),
        "time": ([Shard(1)], [Replicate()]),
        "classes": ([Replicate()], [Shard(0)]),
        "everywhere": ([Replicate()], [Replicate()]),
    }
    for name, (of_hidden, of_kernel) in WAYS.items():
        def split(x, placements):
            return distribute_tensor(x.clone(), line, placements)


        for names, options in OPTIONS:
            given = {n: arrays[n] for n in names}
            variables = [x.clone().requires_grad_() for x in (hidden, kernel)]
            wanted = losses(ml.linear_cross_entropy, *variables, labels, variables=2, bias=bias, **given, **options)
            kinds = {"class_weights": of_kernel, "class_mask": [Shard(2)] if name == "classes" else of_hidden}
            there = {n: split(a, kinds.get(n, of_hidden)) for n, a in given.items()}
            h, k = split(hidden, of_hidden).requires_grad_(), split(kernel, of_kernel).requires_grad_()
            b, y = split(bias, of_kernel), split(labels, of_hidden)
            with Moved() as moved:
                found = losses(ml.linear_cross_entropy, h, k, y, variables=2, bias=b, **there, **options)
            close(found, wanted, (name, names, options))
            assert moved.most <= hidden.numel(), (name, names, options, moved.most)
"""


@pytest.fixture(autouse=True)
def distributed(backend):
    with_processes(backend)


def test_split_is_whole(tmp_path):
    codes, errors = on_processes(tmp_path, BEGIN, LOGITS.replace("{before}", "x"), LINEAR)
    assert codes == [0] * PROCESSES, errors[0]


def test_a_gather_is_seen(tmp_path):
    """The test above can fail."""
    gathered = "x.redistribute(placements=[Replicate()] * mesh.ndim)"
    codes, errors = on_processes(tmp_path, BEGIN, LOGITS.replace("{before}", gathered))
    assert 0 not in codes
    assert "AssertionError: ('rows'" in errors[0], errors[0]
