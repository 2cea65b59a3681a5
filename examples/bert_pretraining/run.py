"""Trains a small BERT in PyTorch and in JAX with one file of losses, evaluates in NumPy, compares every backend."""

import argparse
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# OpenMP threads that wait by spinning make a step of PyTorch five times slower where other work shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import compare
import data
import matplotlib
import model_jax
import model_torch
import numpy as np
from objective import objective
from report import markdown, plot
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
MODELS = {"PyTorch": model_torch, "JAX": model_jax}
SIZES = {"length": 64, "dim": 96, "heads": 4, "layers": 2}
BATCH_SIZE, MICRO_BATCHES = 48, (32, 12, 4)
PEAK_RATE, WARM_UP = 1.5e-3, 20


def prepare(steps):
    """The vocabulary's size, the batches to train on, and those of every tenth document, held out."""
    docs = data.topic_documents()
    tokenizer = data.train_tokenizer(docs + data.docstring_documents())
    vocab_size = tokenizer.get_vocab_size()
    assert vocab_size >= 8000, f"the vocabulary has {vocab_size} pieces"
    segments = data.segments(docs, tokenizer, (SIZES["length"] - 3) // 2)
    held_out = segments[::10]
    training = [s for i, s in enumerate(segments) if i % 10]
    common = {"vocab_size": vocab_size, "batch_size": BATCH_SIZE, "length": SIZES["length"]}
    rng = np.random.default_rng(0)
    return (
        vocab_size,
        list(data.batches(training, rng, steps=steps, **common)),
        list(data.batches(held_out, rng, steps=10, **common)),
    )


def train(name, batches, vocab_size):
    """Both losses of every step, and the function from a batch to the trained model's outputs."""
    steps = np.arange(len(batches))
    rates = PEAK_RATE * np.minimum(np.minimum((steps + 1) / WARM_UP, 1), 2 * (1 - steps / len(steps)))
    curves = {"mlm": [], "nsp": []}
    with tqdm(batches, desc=f"{name:8}", mininterval=0.5) as bar:

        def record(losses):
            for key, curve in curves.items():
                curve.append(round(losses[key], 5))
            recent = {key: f"{np.mean(curve[-compare.LAST :]):.3f}" for key, curve in curves.items()}
            bar.set_postfix(recent, refresh=False)

        predict = MODELS[name].train(bar, rates.astype(np.float32), record, vocab_size=vocab_size, **SIZES)
    return curves, predict


def evaluate(predict, batches):
    """The statistics of all batches, added: NumPy, whatever trained the model."""
    each = [objective(*predict(batch), batch)[1] for batch in batches]
    return {
        key: {"loss": float(total.mean), "correct": int(total.correct) / int(total.count), "count": int(total.count)}
        for key in ("mlm", "nsp")
        for total in [sum(stats[key] for stats in each)]
    }


def surroundings():
    """Versions, machine, date."""
    found = {}
    for package in ("maskloss", "numpy", "torch", "jax", "flax", "optax", "tokenizers", "array-api-strict"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "versions": {"python": platform.python_version(), **found},
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for the tables and the plot")
    parser.add_argument("--docs", action="store_true", help="write them into docs/_generated")
    parser.add_argument("--steps", type=int, default=340)
    args = parser.parse_args()
    folder = HERE.parents[1] / "docs/_generated" if args.docs else args.output
    folder.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    vocab_size, training, held_out = prepare(args.steps)
    seconds = {"data": time.perf_counter() - start}
    uniform = {"mlm": math.log(vocab_size), "nsp": math.log(2)}

    curves, predicts = {}, {}
    for name in MODELS:
        start = time.perf_counter()
        curves[name], predicts[name] = train(name, training, vocab_size)
        seconds[name] = time.perf_counter() - start

    start = time.perf_counter()
    batch = held_out[0]
    outputs = predicts["PyTorch"](batch)
    result = {
        "vocab_size": vocab_size,
        "steps": args.steps,
        "batch_size": BATCH_SIZE,
        "sizes": SIZES,
        "uniform": uniform,
        "curves": curves,
        "first": {n: {k: float(np.mean(x[:5])) for k, x in c.items()} for n, c in curves.items()},
        "last": {n: {k: float(np.mean(x[-compare.LAST :])) for k, x in c.items()} for n, c in curves.items()},
        "averaged over the last": compare.LAST,
        "margin": compare.MARGIN,
        "fell": {name: compare.fell(c, uniform) for name, c in curves.items()},
        "held out": {name: evaluate(predict, held_out) for name, predict in predicts.items()},
        "agreement": compare.agreement(*outputs, batch),
        "wrong ways": compare.wrong_ways(*outputs, batch, MICRO_BATCHES),
        "kept": {"mlm": int((batch["mlm_labels"] != data.NO_LABEL).sum()), "nsp": int(batch["is_pair"].sum())},
        "entries": {"mlm": batch["mlm_labels"].size, "nsp": batch["is_pair"].size},
        **surroundings(),
    }
    seconds["evaluation and comparison"] = time.perf_counter() - start
    result["seconds"] = seconds
    result["processor seconds"] = time.process_time()

    lines = (f'"{name}": {json.dumps(value, allow_nan=False)}' for name, value in result.items())
    (folder / "demo.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    (folder / "demo.md").write_text(markdown(result))
    plot(result, folder / "demo.svg")
    print("\n" + markdown(result) + f"\nwritten: {folder}/demo.{{md,json,svg}}")
    failed = [f"{name}: {key}" for name, f in result["fell"].items() for key, ok in f.items() if not ok]
    if failed:
        sys.exit(f"these losses did not fall: {', '.join(failed)}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
