"""What the same bits everywhere cost, beside the plain engine and two peers. A process a library; calls in turn.

python -m benchmarks.reproducible         # docs/_generated/reproducible.json
python -m benchmarks.reproducible --gpu   # docs/_generated/reproducible_gpu.json
"""

import functools
import json
import subprocess
import sys

from .cases import BERT, Case, arrays_of
from .gpu import device_name
from .harness import ROOT, Result
from .tables import figure, kept_text, provenance, shape_text, spread, table
from .timing import interleaved, middle, ratios

KEPT = (None, 15)
WAYS = ("NumPy", "PyTorch", "PyTorch, torch.compile", "JAX, jit")
ON_GPU = ("PyTorch on a GPU", "JAX on a GPU, jit")
CASE, GPU_CASE = Case(*BERT), Case(8192, 32000, "bfloat16")
LIMIT, FEWEST = 10.0, 5
GPU_LIMIT = 1.0


def with_numpy(kept, logits, labels, mask):
    import numpy as np
    from scipy.special import log_softmax

    import maskloss as ml

    def gradient(**options):
        return ml.value_and_grad(functools.partial(ml.cross_entropy, mask=mask, **options))(logits, labels)

    def peer():
        log_p = np.take_along_axis(log_softmax(logits, axis=-1), labels[:, None], -1)[:, 0]
        return -(log_p if mask is None else log_p[mask]).mean()

    loss = functools.partial(ml.cross_entropy, logits, labels, mask=mask)
    yield "forward", {"plain": loss, "reproducible": functools.partial(loss, reproducible=True), "SciPy": peer}
    yield "with gradient", {"plain": gradient, "reproducible": functools.partial(gradient, reproducible=True)}


def with_torch(kept, logits, labels, mask, *, compiled=False, on_gpu=False):
    import torch

    import maskloss as ml

    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    logits, labels = torch.from_numpy(logits).to(device, dtype), torch.from_numpy(labels).to(device)
    mask = None if mask is None else torch.from_numpy(mask).to(device)
    leaf = logits.clone().requires_grad_()

    def loss(logits, **options):
        return ml.cross_entropy(logits, labels, mask=mask, **options)

    def peer(logits):
        kept = labels if mask is None else labels.masked_fill(~mask, -100)
        return torch.nn.functional.cross_entropy(logits, kept)

    functions = {"plain": loss, "reproducible": functools.partial(loss, reproducible=True), "F.cross_entropy": peer}
    if on_gpu:
        functions["the engine"] = functools.partial(loss, reproducible=True, implementation="analytic")
    if compiled:
        functions = {name: torch.compile(function, fullgraph=True) for name, function in functions.items()}

    def waited_for(call):
        def run():
            call()
            torch.cuda.synchronize()

        return run if on_gpu else call

    def forward(function):
        return waited_for(functools.partial(function, logits))

    def gradient(function):
        return waited_for(lambda: torch.autograd.grad(function(leaf), leaf))

    yield "forward", {name: forward(function) for name, function in functions.items()}
    yield "with gradient", {name: gradient(function) for name, function in functions.items()}


def with_jax(kept, logits, labels, mask, *, on_gpu=False):
    import jax

    import maskloss as ml

    dtype = "bfloat16" if on_gpu else "float32"
    logits, labels = jax.numpy.asarray(logits, dtype), jax.numpy.asarray(labels)
    mask = None if mask is None else jax.numpy.asarray(mask)

    def loss(logits, labels, mask, **options):
        return ml.cross_entropy(logits, labels, mask=mask, **options)

    functions = {"plain": loss, "reproducible": functools.partial(loss, reproducible=True)}
    for direction, made in (("forward", lambda f: f), ("with gradient", jax.value_and_grad)):
        programs = {name: jax.jit(made(function)) for name, function in functions.items()}
        yield (
            direction,
            {
                name: functools.partial(lambda p: jax.block_until_ready(p(logits, labels, mask)), program)
                for name, program in programs.items()
            },
        )


def calls_of(way, *given):
    if way == "NumPy":
        return with_numpy(*given)
    of_library = with_jax if "JAX" in way else functools.partial(with_torch, compiled="compile" in way)
    return of_library(*given, on_gpu=way in ON_GPU)


def measured(way):
    rows, case, limit = [], *((GPU_CASE, GPU_LIMIT) if way in ON_GPU else (CASE, LIMIT))
    for kept in KEPT:
        given = arrays_of(case._replace(kept=kept))
        for direction, calls in calls_of(way, kept, *given.inputs, given.labels, given.mask):
            for call in calls.values():
                call()
            seconds = interleaved(calls, limit=limit, fewest=FEWEST)
            row = {"way": way, "kept": kept, "direction": direction, "seconds": seconds}
            rows.append(row | {"group": "jax" if "JAX" in way else "numpy" if way == "NumPy" else "torch"})
    return rows


def page(result, case=CASE):
    """The page's table, in Markdown: our time over that of the plain engine and of the peer, medians and quartiles."""
    lines = []
    for row in result["rows"]:
        seconds = row["seconds"]
        peers = [name for name in seconds if name not in ("plain", "reproducible")]
        against = [f"{spread(ratios(seconds['reproducible'], seconds[peer]))} {peer}" for peer in peers]
        times = [f"{figure(1e3 * middle(seconds[name])[0])} ms" for name in ("plain", "reproducible")]
        beside = spread(ratios(seconds["reproducible"], seconds["plain"]))
        lines.append([row["way"], row["direction"], kept_text(row["kept"]), *times, beside, ", ".join(against)])
    header = ["", "", "", "plain", "reproducible", "times the plain", "times the peer"]
    shape = f"{shape_text(case)} in {case.dtype}"
    how = "medians and quartiles of interleaved rounds"
    device = f"{result['device']}; " if "device" in result else ""
    return f"{table(header, lines)}\n{shape}, {how}. Measured on {device}{provenance(result)}.\n"


def main():
    on_gpu = sys.argv[1:2] == ["--gpu"]
    if len(sys.argv) > 1 and not on_gpu:
        print(json.dumps(measured(sys.argv[1])))
        return
    folder = ROOT / "docs/_generated"
    if on_gpu:
        about = {"device": device_name("cuda"), "rows": []}
        result = Result(folder / "reproducible_gpu.json", "gpu", ("torch", "jax"), **about)
    else:
        result = Result(folder / "reproducible.json", "page", ("torch", "jax", "numpy"), rows=[])
    for way in ON_GPU if on_gpu else WAYS:
        command = [sys.executable, "-m", "benchmarks.reproducible", way]
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        result.add("rows", json.loads(found.stdout.splitlines()[-1]))
    result.finish()
    print(page(result.found, GPU_CASE if on_gpu else CASE))


if __name__ == "__main__":
    main()
