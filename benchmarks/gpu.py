"""The losses on one GPU, beside what runs there: `python -m benchmarks.gpu`, from the project's root.

    python -m benchmarks.gpu            # docs/_generated/gpu.json and gpu.md
    python -m benchmarks.gpu --trial    # the machinery alone: on the CPU, tiny shapes, into build/bench

A process for each library; within it all are interleaved, as in run.py. Times are those of the device's own events for
PyTorch, and of a call that is waited for in JAX and CuPy. PyTorch's have floors, of the same process: bytes over the
rate of a large copy, operations over the rate of one large product. Each provider's answer is compared before.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from run import ROOT, installed, write
from tables import figure
from timing import interleaved, middle, sample

OURS, TRITON = "maskloss", 'maskloss, implementation="triton"'
PACKAGES = (
    "torch",
    "triton",
    "jax",
    "jaxlib",
    "optax",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
)
NOT_RUN = (
    "Not yet run: no GPU was at hand. On a machine that has one, with PyTorch, JAX and CuPy for it, optax, and any of"
    " liger-kernel, cut-cross-entropy and quack-kernels, `python -m benchmarks.gpu` puts its figures here.\n"
)


class Case(NamedTuple):
    rows: int
    classes: int
    kept: int | None = None  # in percent; None: no mask
    logits: str = "normal"  # "peaked": the label's stands out by 20
    features: int | None = None  # of a projection, whose loss it then is
    cold: bool = False  # the cache is emptied before each call


SHAPES = ((8192, 32000), (8192, 128256), (32768, 1024), (256, 1024))
PROJECTION = Case(8192, 128256, features=4096)
CASES = {
    "torch": (
        *(Case(*shape, kept) for shape in SHAPES for kept in (None, 50, 15)),
        Case(*SHAPES[1], logits="peaked"),
        Case(*SHAPES[3], cold=True),
        *(PROJECTION._replace(kept=kept) for kept in (None, 15)),
    ),
    "jax": (*(Case(*shape, kept) for shape in SHAPES[:2] for kept in (None, 15)), PROJECTION._replace(rows=2048)),
    "cupy": tuple(Case(*SHAPES[0], kept) for kept in (None, 15)),
}


def arrays_of(case):
    rng = np.random.default_rng(0)
    # Repeated with a prime period: to draw a billion numbers takes longer than to measure with them.
    some = rng.standard_normal(1_000_003, dtype=np.float32)
    labels = rng.integers(0, case.classes, case.rows)
    mask = None if case.kept is None else rng.random(case.rows) < case.kept / 100
    if case.features:
        hidden = np.resize(some, (case.rows, case.features))
        return (hidden, np.resize(some[::-1], (case.classes, case.features)) / case.features**0.5), labels, mask
    logits = np.resize(some, (case.rows, case.classes))
    if case.logits == "peaked":
        logits[np.arange(case.rows), labels] += 20
    return (logits,), labels, mask


class Torch:
    def __init__(self, case, device):
        import torch
        import torch.nn.functional as F

        import maskloss as ml

        self.torch, self.device, self.case = torch, torch.device(device), case
        given, labels, mask = arrays_of(case)
        self.leaves = [torch.from_numpy(x).to(self.device, torch.bfloat16).requires_grad_() for x in given]
        labels, mask = (None if x is None else torch.from_numpy(x).to(self.device) for x in (labels, mask))
        ignored = labels if mask is None else torch.where(mask, labels, -100)
        if case.features:
            ours, names = ml.linear_cross_entropy, ("liger_fused_linear_cross_entropy", "linear_cross_entropy", None)

            def native(hidden, kernel, labels):
                return F.cross_entropy(F.linear(hidden, kernel), labels)
        else:
            ours, native, names = ml.cross_entropy, F.cross_entropy, ("liger_cross_entropy", None, "cross_entropy")
        losses = {
            OURS: lambda *x: ours(*x, labels, mask=mask),
            TRITON: lambda *x: ours(*x, labels, mask=mask, implementation="triton"),
            "F.cross_entropy": lambda *x: native(*x, ignored),
            "F.cross_entropy, kept rows": mask is not None and (lambda x, *k: native(x[mask], *k, labels[mask])),
            "F.cross_entropy, torch.compile": (lambda f: lambda *x: f(*x, ignored))(torch.compile(native)),
        }
        peers = ("liger_kernel.transformers.functional", "cut_cross_entropy", "quack.cross_entropy")
        for module, name in zip(peers, names, strict=True):
            package = module.partition(".")[0]
            if name and importlib.util.find_spec(package):
                # Imported when called: one that cannot be does not stop the others.
                losses[package] = lambda *x, m=module, n=name: getattr(importlib.import_module(m), n)(*x, ignored)
        # liger-kernel writes the gradient over the logits that it is given: it has its own.
        self.liger = [x.detach().clone().requires_grad_() for x in self.leaves]
        self.calls = {name: (lambda n=name, f=f: self.backward(n, f)) for name, f in losses.items() if f}

    def backward(self, name, loss):
        leaves = self.liger if name == "liger_kernel" else self.leaves
        value = loss(*leaves)
        value = value[0] if isinstance(value, tuple) else value
        return value, self.torch.autograd.grad(value, leaves)

    def answer(self, name):
        value, gradients = self.calls[name]()
        return [x.detach().float().cpu().numpy() for x in (value, *gradients)]

    def take(self, call, repeats):
        if self.device.type == "cpu":
            return sample(call, repeats)
        event = self.torch.cuda.Event
        flushed = self.torch.empty(1 << 28, dtype=self.torch.uint8, device=self.device) if self.case.cold else None
        # One span of time around all calls, or one around each.
        count, calls = (repeats, 1) if self.case.cold else (1, repeats)
        spans = []
        for _ in range(count):
            if flushed is not None:
                flushed.zero_()
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            for _ in range(calls):
                call()
            end.record()
            spans.append((start, end))
        self.torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in spans) / repeats / 1e3

    def rates(self):
        """Bytes per second of a copy, both ways counted, and operations per second of a product of bfloat16."""
        size = 1 << (28 if self.device.type == "cuda" else 20)
        a, b = (self.torch.empty(size, dtype=self.torch.uint8, device=self.device) for _ in range(2))
        side = 8192 if self.device.type == "cuda" else 128
        x, y = (self.torch.randn(side, side, device=self.device, dtype=self.torch.bfloat16) for _ in range(2))
        copy, product = (min(self.take(f, 5) for _ in range(5)) for f in (lambda: b.copy_(a), lambda: x @ y))
        return 2 * size / copy, 2 * side**3 / product

    def extra(self, call):
        """Bytes at the allocator's peak beyond what was there; the gradients are among them."""
        if self.device.type == "cpu":
            return None
        self.torch.cuda.reset_peak_memory_stats(self.device)
        before = self.torch.cuda.memory_allocated(self.device)
        call()
        return self.torch.cuda.max_memory_allocated(self.device) - before


class Waited:
    """What JAX and CuPy share: a call is over when its answer is there."""

    def take(self, call, repeats):
        return sample(call, repeats)

    def rates(self):
        return None

    def extra(self, call):
        return None


class Jax(Waited):
    def __init__(self, case, device):
        import jax
        import jax.numpy as jnp
        from optax import softmax_cross_entropy_with_integer_labels as per_entry

        import maskloss as ml

        given, labels, mask = arrays_of(case)
        given = [jnp.asarray(x, jnp.bfloat16) for x in given]
        labels, mask = jnp.asarray(labels), None if mask is None else jnp.asarray(mask)

        def ours(*x):
            return (ml.linear_cross_entropy if case.features else ml.cross_entropy)(*x, labels, mask=mask)

        def theirs(x, kernel=None):
            x = x if kernel is None else jnp.matmul(x, kernel.T, preferred_element_type=jnp.float32)
            losses = per_entry(x.astype(jnp.float32), labels)
            return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()

        places = tuple(range(len(given)))
        made = {name: jax.jit(jax.value_and_grad(f, places)) for name, f in ((OURS, ours), ("optax", theirs))}
        self.calls = {name: (lambda f=f: jax.block_until_ready(f(*given))) for name, f in made.items()}

    def answer(self, name):
        value, gradients = self.calls[name]()
        return [np.asarray(x, np.float32) for x in (value, *gradients)]


class Cupy(Waited):
    def __init__(self, case, device):
        xp = importlib.import_module("cupy" if device == "cuda" else "numpy")
        import maskloss as ml

        (logits,), labels, mask = (
            [xp.asarray(x) for x in part] if isinstance(part, tuple) else part for part in arrays_of(case)
        )
        labels, mask = xp.asarray(labels), None if mask is None else xp.asarray(mask)
        call = ml.value_and_grad(ml.cross_entropy)

        def ours():
            result = call(logits, labels, mask=mask)
            if device == "cuda":
                xp.cuda.get_current_stream().synchronize()
            return result

        self.calls = {OURS: ours}

    def answer(self, name):
        return [x.get() if hasattr(x, "get") else x for x in self.calls[name]()]


MAKE = {"torch": Torch, "jax": Jax, "cupy": Cupy}


def measure(group, case, device, limit):
    runner, failed = MAKE[group](case, device), {}
    expected = runner.answer(OURS)
    for name in list(runner.calls):
        try:
            for found, wanted in zip(runner.answer(name), expected, strict=True):
                distance = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
                if not distance < 2e-2:
                    raise ValueError(f"{distance:.2g} from {OURS}")
        except Exception as error:  # one that cannot run, or is wrong, does not stop the others
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
            del runner.calls[name]
    seconds = interleaved(runner.calls, limit=limit, fewest=5, take=runner.take)
    row = {"group": group, "case": list(case), "failed": failed, "extra": {}}
    row["seconds"] = {name: [float(f"{t:.4g}") for t in times] for name, times in seconds.items()}
    row["extra"] = {name: runner.extra(call) for name, call in runner.calls.items()}
    row["device"] = description(device)
    if rates := runner.rates():
        row["rates"] = [float(f"{rate:.4g}") for rate in rates]
    return row


def description(device):
    if device == "cpu":
        return "CPU, a trial"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def least(case, rates):
    """Seconds: one read of the kept logits and one write of the gradient, or the operations of three products."""
    kept = case.rows * (1 if case.kept is None else case.kept / 100)
    if case.features:
        return 6 * kept * case.features * case.classes / rates[1]
    return 2 * (kept + case.rows) * case.classes / rates[0]


def label(case):
    parts = [f"{case.rows} × {case.features} × {case.classes}" if case.features else f"{case.rows} × {case.classes}"]
    parts += ["all" if case.kept is None else f"{case.kept} %", *([case.logits] if case.logits != "normal" else [])]
    return ", ".join([*parts, *(["cold cache"] if case.cold else [])])


def table(result):
    """The page's tables, in Markdown."""
    if result is None:
        return NOT_RUN
    out = []
    for group in MAKE:
        rows = [row for row in result["rows"] if row["group"] == group]
        names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
        out.append(f"**{group}**, loss and gradient: ms, and theirs / ours\n")
        out.append("| | floor | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
        for row in rows:
            case, ours = Case(*row["case"]), row["seconds"].get(OURS)
            cells = [label(case), figure(1e3 * least(case, row["rates"])) if "rates" in row else ""]
            for name in names:
                times = row["seconds"].get(name)
                if times is None:
                    cells.append("failed" if name in row["failed"] else "")
                    continue
                extra = row["extra"].get(name)
                memory = "" if extra is None else f", {extra / 2**30:.2f} GiB"
                ratio = "" if name == OURS or not ours else f" ({figure(middle(np.divide(times, ours))[0])})"
                cells.append(figure(1e3 * middle(times)[0]) + ratio + memory)
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
        out += [f"- {label(Case(*row['case']))}: {n} failed: {why}" for row in rows for n, why in row["failed"].items()]
    device = next((row["device"] for row in result["rows"] if "device" in row), "")
    found = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if v != "not installed")
    out.append(f"\nMeasured on {result['date']}: {device}; {found}.")
    return "\n".join(out) + "\n"


def child(task):
    """Each library in a process of its own, which has the whole device."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if task["device"] == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr, flush=True)
        return {
            "group": task["group"],
            "case": task["case"],
            "failed": {OURS: done.stderr[-300:]},
            "seconds": {},
            "extra": {},
        }
    print(done.stdout.strip().splitlines()[-1][:400], file=sys.stderr, flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="on the CPU, tiny shapes")
    parser.add_argument("--only", choices=tuple(MAKE), help="one library")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of a case (2)")
    parser.add_argument("--output", type=Path, help="where gpu.json and gpu.md go")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        task = json.loads(args.task)
        print(json.dumps(measure(**task | {"case": Case(*task["case"])})))
        return
    device, limit, cases = ("cpu", 0.01, {}) if args.trial else ("cuda", args.limit, CASES)
    for group in CASES if args.trial else ():
        cases[group] = (Case(16, 40, 50), *([Case(16, 40, 50, features=8)] if group != "cupy" else []))
    groups = [args.only] if args.only else list(MAKE)
    tasks = [{"group": g, "case": case, "device": device, "limit": limit} for g in groups for case in cases[g]]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "versions": installed(PACKAGES),
        "rows": [child(task) for task in tasks],
    }
    folder = args.output or ROOT / ("build/bench" if args.trial else "docs/_generated")
    folder.mkdir(parents=True, exist_ok=True)
    write(result, folder / "gpu.json")
    (folder / "gpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
