"""python -m benchmarks.planes: classes that do not lie side by side, as those of images, beside the libraries' losses.

Writes docs/_generated/planes.json; with --gpu, of PyTorch on a GPU, planes_gpu.json. A process for each library; the
calls of a row in turn.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from .gpu import NOT_RUN, device_name
from .harness import ROOT, Result
from .tables import figure, provenance, spread, table
from .timing import interleaved, middle, ratios, sample

# (N, C, ...): those of segmentation, of sequences, and two that nothing was tuned to.
SHAPES = (
    *((8, 19, 256, 256), (2, 150, 256, 256), (4, 21, 128, 128), (1, 2, 512, 512), (1, 14, 64, 64, 32), (8, 50, 512)),
    *((64, 1024, 512), (3, 11, 200, 300)),
)
IGNORED, SHARE = 255, 0.1
PEERS = {"torch": "F.cross_entropy", "numpy": "SciPy", "jax": "Optax"}
TITLES = {"torch": "PyTorch", "numpy": "NumPy", "jax": "JAX, jit"}
LIMIT, FEWEST = 0.8, 5
# On a GPU: where the host is not what takes the time; and what is compiled beside it.
LARGE, COMPILED = (16, 21, 512, 512), ((8, 19, 256, 256), (2, 150, 256, 256), (16, 21, 512, 512))


def arrays(shape, ignores):
    rng = np.random.default_rng(0)
    entries = (shape[0], *shape[2:])
    labels = rng.integers(0, shape[1], entries)
    labels = np.where(rng.random(entries) < SHARE, IGNORED, labels) if ignores else labels
    return rng.standard_normal(shape, dtype=np.float32) * 3, labels, {"ignore_index": IGNORED} if ignores else {}


def with_torch(logits, labels, options, device="cpu", dtype="float32"):
    import torch

    import maskloss as ml

    x, y = torch.from_numpy(logits).to(device, getattr(torch, dtype)), torch.from_numpy(labels).to(device)
    leaf = x.clone().requires_grad_()
    functions = {
        "ours": lambda a: ml.cross_entropy(a, y, axis=1, **options),
        "theirs": lambda a: torch.nn.functional.cross_entropy(a, y, **options),
    }
    if device == "cuda":
        functions["compiled"] = torch.compile(functions["theirs"], dynamic=False)
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
                about = {"group": group, "shape": shape, "ignores": ignores, "direction": direction}
                rows.append(about | timed(direction, calls, LIMIT))
    return rows


def timed(direction, calls, limit, take=sample):
    values = [call() for call in calls.values() for _ in range(2)]
    if direction == "forward":
        for value in values[2::2]:
            np.testing.assert_allclose(float(values[0]), float(value), rtol=2.0**-7)  # F gives its loss in bfloat16
    return interleaved(calls, limit=limit, fewest=FEWEST, take=take)


def on_gpu():
    import torch

    def take(call, repeats):
        """Of as many calls, from the first one's start to the device's end of the last."""
        torch.cuda.synchronize()
        seconds = sample(call, repeats - 1) * (repeats - 1) if repeats > 1 else 0.0
        return (seconds + sample(lambda: (call(), torch.cuda.synchronize()), 1)) / repeats

    rows = []
    for shape in (*SHAPES, LARGE):
        for dtype in ("bfloat16", "float32"):
            for ignores in (False, True):
                for direction, calls in with_torch(*arrays(shape, ignores), device="cuda", dtype=dtype):
                    if ignores or shape not in COMPILED:
                        calls.pop("compiled", None)
                    about = {"shape": shape, "dtype": dtype, "ignores": ignores, "direction": direction}
                    rows.append(about | timed(direction, calls, LIMIT / 8, take))
                    print(json.dumps({**about, **{n: middle(rows[-1][n])[0] for n in calls}}), flush=True)
    return rows


def page_of_gpu(result):
    if result is None:
        return NOT_RUN
    lines = {}
    for row in result["rows"]:
        kept = "10 % ignored" if row["ignores"] else "all kept"
        line = lines.setdefault((" × ".join(map(str, row["shape"])), row["dtype"], kept), [])
        for name in ("theirs", "compiled"):
            three = ratios(row[name], row["ours"]) if name in row else None
            line.append(figure(three[0]) if three and len(row["ours"]) == 1 else spread(three))
        line.append(figure(1e3 * middle(row["ours"])[0]))
    header = ["", "dtype", ""]
    for direction in ("forward", "with gradient"):
        header += [f"{direction}: F.cross_entropy's time / ours", "torch.compile of it / ours", "ours, ms"]
    found = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if v != "not installed")
    text = table(header, [[*key, *line] for key, line in lines.items()])
    about = f"{result['date']}: {result['device']}; {found}"
    text += f"\n{result['note']}\n" if "note" in result else ""
    return f"{text}\n`axis=1`; medians and quartiles of interleaved rounds. Measured on {about}.\n"


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
    if sys.argv[1:2] == ["--gpu"]:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs/_generated"
        result = Result(folder / "planes_gpu.json", "gpu", ("torch",), device=device_name("cuda"), rows=[])
        result.add("rows", on_gpu())
        result.finish(strict=False)
        print(page_of_gpu(result.found))
        return
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
