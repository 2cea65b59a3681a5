"""python -m benchmarks.reproducible: what the same bits everywhere cost, beside the plain engine and two peers.

Writes docs/_generated/reproducible.json. A process for each library; the calls of a row in turn.
"""

import functools
import json
import subprocess
import sys

from .cases import BERT, Case, arrays_of
from .harness import ROOT, Result
from .tables import figure, kept_text, provenance, spread, table
from .timing import interleaved, middle, ratios

KEPT = (None, 15)
WAYS = ("NumPy", "PyTorch", "PyTorch, torch.compile", "JAX, jit")
LIMIT, FEWEST = 10.0, 5


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


def with_torch(kept, logits, labels, mask, compiled=False):
    import torch

    import maskloss as ml

    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    mask = None if mask is None else torch.from_numpy(mask)
    leaf = logits.clone().requires_grad_()

    def loss(logits, **options):
        return ml.cross_entropy(logits, labels, mask=mask, **options)

    def peer(logits):
        kept = labels if mask is None else labels.masked_fill(~mask, -100)
        return torch.nn.functional.cross_entropy(logits, kept)

    functions = {"plain": loss, "reproducible": functools.partial(loss, reproducible=True), "F.cross_entropy": peer}
    if compiled:
        functions = {name: torch.compile(function, fullgraph=True) for name, function in functions.items()}

    def gradient(function):
        return torch.autograd.grad(function(leaf), leaf)

    yield "forward", {name: functools.partial(function, logits) for name, function in functions.items()}
    yield "with gradient", {name: functools.partial(gradient, function) for name, function in functions.items()}


def with_jax(kept, logits, labels, mask):
    import jax

    import maskloss as ml

    logits, labels = jax.numpy.asarray(logits), jax.numpy.asarray(labels)
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
    return with_jax(*given) if way == "JAX, jit" else with_torch(*given, compiled="compile" in way)


def measured(way):
    rows = []
    for kept in KEPT:
        given = arrays_of(Case(*BERT, kept=kept))
        for direction, calls in calls_of(way, kept, *given.inputs, given.labels, given.mask):
            for call in calls.values():
                call()
            seconds = interleaved(calls, limit=LIMIT, fewest=FEWEST)
            row = {"way": way, "kept": kept, "direction": direction, "seconds": seconds}
            rows.append(row | {"group": "jax" if "JAX" in way else "numpy" if way == "NumPy" else "torch"})
    return rows


def page(result):
    """The page's table, in Markdown: our time over that of the plain engine and of the peer, medians and quartiles."""
    lines = []
    for row in result["rows"]:
        seconds = row["seconds"]
        peers = [name for name in seconds if name not in ("plain", "reproducible")]
        against = [f"{spread(ratios(seconds['reproducible'], seconds[peer]))} {peer}" for peer in peers]
        times = [f"{figure(1e3 * middle(seconds[name])[0])} ms" for name in ("plain", "reproducible")]
        beside = spread(ratios(seconds["reproducible"], seconds["plain"]))
        lines.append([row["way"], row["direction"], kept_text(row["kept"]), *times, beside, *(against or [""])])
    header = ["", "", "", "plain", "reproducible", "times the plain", "times the peer"]
    shape = f"{BERT[0]} × {BERT[1]} in float32"
    how = "medians and quartiles of interleaved rounds"
    return f"{table(header, lines)}\n{shape}, {how}. Measured on {provenance(result)}.\n"


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
        return
    result = Result(ROOT / "docs/_generated/reproducible.json", "page", ("torch", "jax", "numpy"), rows=[])
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.reproducible", way]
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        result.add("rows", json.loads(found.stdout.splitlines()[-1]))
    result.finish()
    print(page(result.found))


if __name__ == "__main__":
    main()
