"""linear_cross_entropy, forward + backward, beside projection and loss apart; in PyTorch and in JAX.

    python benchmarks/linear.py            # docs/_generated/linear.json
    python benchmarks/linear.py --quick    # a trial of the machinery: small shapes, into build/bench

Like run.py it interleaves all in one process for each library. The floor is 6 * kept * D * V operations, those of three
matrix products, at the rate of one large product measured just before.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
from memory import peak_beyond
from run import ROOT, machine, versions, write
from tables import figure
from timing import interleaved, middle, sample

OURS, PRODUCTS = "maskloss", "three products"
PEER = {"torch": "F.linear + F.cross_entropy", "jax": "optax on hidden @ kernel.T"}


class Shape(NamedTuple):
    rows: int
    features: int
    classes: int
    kept: int | None = None  # in percent; None: no mask


BERT = Shape(2048, 384, 30522)
CASES = (*(BERT._replace(kept=kept) for kept in (None, 50, 15)), Shape(1024, 768, 50257), Shape(1024, 768, 50257, 15))
MEMORY = (BERT, BERT._replace(rows=16384))
MEASURED = {"torch": (OURS, PEER["torch"], "F.linear_cross_entropy, chunked"), "jax": (OURS, PEER["jax"])}


def arrays_of(shape):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((shape.rows, shape.features), dtype=np.float32)
    kernel = rng.standard_normal((shape.classes, shape.features), dtype=np.float32) / np.float32(shape.features**0.5)
    labels = rng.integers(0, shape.classes, shape.rows)
    return hidden, kernel, labels, None if shape.kept is None else rng.random(shape.rows) < shape.kept / 100


def torch_calls(arrays):
    import torch
    import torch.nn.functional as F

    import maskloss as ml

    hidden, kernel, labels, mask = (None if x is None else torch.from_numpy(x) for x in arrays)
    hidden.requires_grad_()
    kernel.requires_grad_()
    ignored = labels if mask is None else torch.where(mask, labels, -100)

    def backward(loss):
        def call():
            hidden.grad = kernel.grad = None
            value = loss()
            value.backward()
            return value

        return call

    def pair(hidden=hidden, kernel=kernel, labels=ignored):
        return F.cross_entropy(F.linear(hidden, kernel), labels)

    def products():
        with torch.no_grad():
            logits = hidden @ kernel.T
            return logits @ kernel, logits.T @ hidden

    losses = {
        OURS: lambda: ml.linear_cross_entropy(hidden, kernel, labels, mask=mask),
        PEER["torch"]: pair,
        "the same, kept rows": mask is not None and (lambda: pair(hidden[mask], kernel, labels[mask])),
        "the same, torch.compile": torch.compile(pair),
    }
    if hasattr(F, "linear_cross_entropy"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        losses["F.linear_cross_entropy"] = lambda: F.linear_cross_entropy(hidden, kernel, ignored)
        losses["F.linear_cross_entropy, chunked"] = lambda: F.linear_cross_entropy(
            hidden, kernel, ignored, options=chunked
        )
    calls = {name: backward(loss) for name, loss in losses.items() if loss}
    if mask is None:
        calls[PRODUCTS] = products

    def answer(name):
        value = calls[name]()
        return value.item(), hidden.grad.numpy().copy(), kernel.grad.numpy().copy()

    a, b = torch.ones(2048, 2048), torch.ones(2048, 2048)
    return calls, answer, lambda: a @ b


def jax_calls(arrays):
    import jax
    import jax.numpy as jnp
    from optax import softmax_cross_entropy_with_integer_labels as per_entry

    import maskloss as ml

    hidden, kernel, labels, mask = (None if x is None else jnp.asarray(x) for x in arrays)

    def pair(hidden, kernel, labels, mask):
        losses = per_entry(hidden @ kernel.T, labels)
        return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()

    def ours(hidden, kernel, labels, mask):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)

    jitted = {OURS: jax.jit(jax.value_and_grad(ours, (0, 1))), PEER["jax"]: jax.jit(jax.value_and_grad(pair, (0, 1)))}
    given = (hidden, kernel, labels, mask)
    calls = {name: (lambda f=f: jax.block_until_ready(f(*given))) for name, f in jitted.items()}

    @jax.jit
    def products(hidden, kernel):
        logits = hidden @ kernel.T
        return logits @ kernel, logits.T @ hidden

    if mask is None:
        calls[PRODUCTS] = lambda: jax.block_until_ready(products(hidden, kernel))

    def answer(name):
        value, gradients = calls[name]()
        return float(value), *map(np.asarray, gradients)

    def planned(name):
        plan = jitted[name].lower(*given).compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.output_size_in_bytes

    answer.planned = planned
    a = jnp.ones((2048, 2048))
    square = jax.jit(lambda a: a @ a)
    return calls, answer, lambda: square(a).block_until_ready()


def agree(calls, answer):
    """A benchmark of a wrong answer is none."""
    expected = answer(OURS)
    for name in calls:
        if name in (OURS, PRODUCTS):
            continue
        for found, wanted in zip(answer(name), expected, strict=True):
            distance = np.linalg.norm(np.subtract(found, wanted)) / np.linalg.norm(wanted)
            if not distance < 1e-4:
                raise SystemExit(f"{name} is {distance:.2g} from maskloss")


def measure(group, shape, limit, fewest):
    arrays = arrays_of(shape)
    calls, answer, square = MAKE[group](arrays)
    agree(calls, answer)
    square()
    rate = 2 * 2048**3 / min(sample(square, 3) for _ in range(5))
    seconds = interleaved(calls, limit=limit, fewest=fewest)
    mask = arrays[3]
    kept = shape.rows if mask is None else int(mask.sum())
    return {
        "group": group,
        "shape": list(shape),
        "floor": 6 * kept * shape.features * shape.classes / rate,
        "GFLOP/s": round(rate / 1e9, 1),
        "seconds": {name: [float(f"{t:.4g}") for t in times] for name, times in seconds.items()},
    }


def memory(group, shape, name):
    """Bytes at the peak beyond the arguments and their gradients, as a share of BERT's logits."""
    calls, answer, _ = MAKE[group](arrays_of(shape))
    if group == "jax":
        found = answer.planned(name)
    else:
        # The libraries' own buffers, from a call on a few rows.
        MAKE[group](arrays_of(shape._replace(rows=64)))[0][name]()
        found = peak_beyond(calls[name])
    gradients = 4 * (shape.rows + shape.classes) * shape.features
    extra = None if found is None else round((found - gradients) / (4 * BERT.rows * BERT.classes), 3)
    return {"group": group, "shape": list(shape), "provider": name, "extra": extra}


MAKE = {"torch": torch_calls, "jax": jax_calls}


def child(task):
    """Each in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{task}\n{done.stderr[-3000:]}")
    print(done.stdout.strip().splitlines()[-1][:300], file=sys.stderr, flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(result):
    """The page's tables, in Markdown."""
    out = []
    for group in PEER:
        rows = [row for row in result["rows"] if row["group"] == group]
        names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
        out.append(f"**{'PyTorch' if group == 'torch' else 'JAX under jit'}**: times in ms, and theirs / ours\n")
        out.append("| rows × features × classes | floor | " + " | ".join(names) + " |")
        out.append("|---" * (len(names) + 2) + "|")
        for row in rows:
            n, d, v, kept = row["shape"]
            ours = row["seconds"][OURS]
            cells = [f"{n} × {d} × {v}, " + ("all" if kept is None else f"{kept} %"), figure(1e3 * row["floor"])]
            for name in names:
                times = row["seconds"].get(name)
                if times is None:
                    cells.append("")
                    continue
                middle_, low, high = middle(np.divide(times, ours))
                spread = "" if name == OURS else f" ({figure(middle_)}; {figure(low)}–{figure(high)})"
                cells.append(f"{figure(1e3 * middle(times)[0])}{spread}")
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    out.append("**Memory** at the peak beyond arguments and gradients, as a share of 2048 × 30522 logits\n")
    out.append("| | 2048 rows | 16384 rows |\n|---|---|---|")
    for group in PEER:
        for name in MEASURED[group]:
            found = {
                r["shape"][0]: r["extra"] for r in result["memory"] if (r["group"], r["provider"]) == (group, name)
            }
            out.append(f"| {group}: {name} | " + " | ".join(str(found.get(s.rows, "")) for s in MEMORY) + " |")
    where = result["machine"]
    versions_ = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    out.append(
        f"\nMeasured on {result['date']}: {where['cpu']}, {where['cores']} cores, {where['GiB']} GiB; {versions_}."
    )
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, one round")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of a case (20)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        task = json.loads(args.task)
        shape = Shape(*task.pop("shape"))
        print(json.dumps(memory(shape=shape, **task) if "name" in task else measure(shape=shape, **task)))
        return
    cases, sizes = CASES, MEMORY
    if args.quick:
        cases, sizes, args.limit = (Shape(64, 8, 300), Shape(64, 8, 300, 15)), (Shape(64, 8, 300),), 0.05
    result = {"machine": machine(), "versions": versions(("torch", "jax")), "date": time.strftime("%Y-%m-%d")}
    timing = {"limit": args.limit, "fewest": 1 if args.quick else 5}
    result["rows"] = [child({"group": group, "shape": case, **timing}) for group in PEER for case in cases]
    tasks = [{"group": group, "shape": shape, "name": n} for group in PEER for shape in sizes for n in MEASURED[group]]
    result["memory"] = [child(task) for task in tasks]
    folder = ROOT / ("build/bench" if args.quick else "docs/_generated")
    folder.mkdir(parents=True, exist_ok=True)
    write(result, folder / "linear.json")
    print(table(result))


if __name__ == "__main__":
    main()
