"""python -m benchmarks.planes: classes that do not lie side by side, as those of images, beside the libraries' losses.

Writes docs/_generated/planes.json. A process for each library; the calls of a row in turn.
"""

import functools
import json
import subprocess
import sys

import numpy as np

from .harness import ROOT, Result
from .tables import figure, provenance, spread, table
from .timing import interleaved, middle, ratios

# (N, C, ...): those of segmentation, of sequences, and two that nothing was tuned to.
SHAPES = (
    *((8, 19, 256, 256), (2, 150, 256, 256), (4, 21, 128, 128), (1, 2, 512, 512), (1, 14, 64, 64, 32), (8, 50, 512)),
    *((64, 1024, 512), (3, 11, 200, 300)),
)
IGNORED, SHARE = 255, 0.1
PEERS = {"torch": "F.cross_entropy", "numpy": "SciPy", "jax": "Optax"}
TITLES = {"torch": "PyTorch", "numpy": "NumPy", "jax": "JAX, jit"}
LIMIT, FEWEST = 2.0, 5


def arrays(shape, ignores):
    rng = np.random.default_rng(0)
    entries = (shape[0], *shape[2:])
    labels = rng.integers(0, shape[1], entries)
    labels = np.where(rng.random(entries) < SHARE, IGNORED, labels) if ignores else labels
    return rng.standard_normal(shape, dtype=np.float32) * 3, labels, {"ignore_index": IGNORED} if ignores else {}


def with_torch(logits, labels, options):
    import torch

    import maskloss as ml

    x, y = torch.from_numpy(logits), torch.from_numpy(labels)
    leaf = x.clone().requires_grad_()
    functions = {
        "ours": lambda a: ml.cross_entropy(a, y, axis=1, **options),
        "theirs": lambda a: torch.nn.functional.cross_entropy(a, y, **options),
    }
    yield "forward", {name: functools.partial(function, x) for name, function in functions.items()}
    yield (
        "with gradient",
        {name: lambda f=function: torch.autograd.grad(f(leaf), leaf) for name, function in functions.items()},
    )


def with_numpy(logits, labels, options):
    from scipy.special import log_softmax

    import maskloss as ml

    kept = labels != IGNORED

    def peer():
        log_p = np.take_along_axis(log_softmax(logits, axis=1), np.where(kept, labels, 0)[:, None], 1)[:, 0]
        return -(log_p if kept.all() else log_p[kept]).mean()

    yield "forward", {"ours": lambda: ml.cross_entropy(logits, labels, axis=1, **options), "theirs": peer}


def with_jax(logits, labels, options):
    import jax
    import optax

    import maskloss as ml

    x, y = jax.numpy.asarray(logits), jax.numpy.asarray(labels)

    def ours(x, y):
        return ml.cross_entropy(x, y, axis=1, **options)

    def peer(x, y):
        kept = y != IGNORED
        each = optax.softmax_cross_entropy_with_integer_labels(x, jax.numpy.where(kept, y, 0), axis=1)
        return (each * kept).sum() / kept.sum() if options else each.mean()

    for direction, made in (("forward", lambda f: f), ("with gradient", jax.value_and_grad)):
        programs = {"ours": jax.jit(made(ours)), "theirs": jax.jit(made(peer))}
        yield direction, {n: lambda p=program: jax.block_until_ready(p(x, y)) for n, program in programs.items()}


WAYS = {"torch": with_torch, "numpy": with_numpy, "jax": with_jax}


def measured(group):
    rows = []
    for shape in SHAPES:
        for ignores in (False, True):
            for direction, calls in WAYS[group](*arrays(shape, ignores)):
                values = [call() for call in calls.values() for _ in range(2)]
                if direction == "forward":
                    np.testing.assert_allclose(*(float(x) for x in values[::2]), rtol=1e-4)
                seconds = interleaved(calls, limit=LIMIT, fewest=FEWEST)
                rows.append({"group": group, "shape": shape, "ignores": ignores, "direction": direction} | seconds)
    return rows


def page(result):
    """The page's table, in Markdown: their time over ours, medians and quartiles, and our milliseconds."""
    found = {(row["group"], tuple(row["shape"]), row["ignores"], row["direction"]): row for row in result["rows"]}
    columns = list(dict.fromkeys((row["group"], row["direction"]) for row in result["rows"]))
    header = ["", "", *(f"{TITLES[group]}, {direction} / {PEERS[group]}" for group, direction in columns)]
    lines = []
    for shape, ignores in dict.fromkeys((tuple(row["shape"]), row["ignores"]) for row in result["rows"]):
        line = [" × ".join(map(str, shape)), "10 % ignored" if ignores else "all kept"]
        for group, direction in columns:
            row = found[group, shape, ignores, direction]
            milliseconds = figure(1e3 * middle(row["ours"])[0])
            line.append(f"{spread(ratios(row['theirs'], row['ours']))}, {milliseconds} ms")
        lines.append(line)
    what = "float32, `axis=1`: how many times our time the other takes, medians and quartiles of interleaved rounds"
    return f"{table(header, lines)}\n{what}. Measured on {provenance(result)}.\n"


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
        return
    result = Result(ROOT / "docs/_generated/planes.json", "page", tuple(WAYS), rows=[])
    for group in WAYS:
        command = [sys.executable, "-m", "benchmarks.planes", group]
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        result.add("rows", json.loads(found.stdout.splitlines()[-1]))
    result.finish()
    print(page(result.found))


if __name__ == "__main__":
    main()
