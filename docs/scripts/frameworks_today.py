"""What each framework answers to the same awkward question, by calling it.

    python docs/scripts/frameworks_today.py --write    # and the block between README.md's frameworks-today markers
    python docs/scripts/frameworks_today.py --check    # exit 1 where a cell or a written file is stale

Keras picks its backend when it is imported, so each of its columns comes from a process of its own.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, ROOT, arguments, marked, table

MARKDOWN = GENERATED / "frameworks_today.md"
RECORD = MARKDOWN.with_suffix(".json")
README = ROOT / "README.md"
BEGIN, END = "<!-- frameworks-today:begin -->", "<!-- frameworks-today:end -->"
COLUMNS = ("F.cross_entropy", "optax", "Keras on torch", "Keras on JAX", "maskloss")
PACKAGES = ("numpy", "torch", "jax", "optax", "keras", "maskloss")

rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((4, 3)).astype("float32")
LABELS = np.array([0, 2, 1, 1])
MASK = np.array([True, True, False, True])
IGNORED = np.where(MASK, LABELS, -100)
NAN_ROW = np.where(MASK[:, None], LOGITS, np.float32("nan"))
CLASS_WEIGHTS = np.array([0.2, 1.0, 3.0], "float32")
ALLOWED = np.array([True, False, True])
EXCLUDED = np.where(ALLOWED, LOGITS, np.float32("-inf"))
EXCLUDED_LABELS = np.array([0, 2, 0, 2])
SMOOTHING = 0.1
WIDE_LABELS = rng.integers(0, 2000, 512)


def wide_logits():
    return (2 * np.random.default_rng(1).standard_normal((512, 2000))).astype("bfloat16")


def one_hot(labels, classes=3):
    return np.eye(classes, dtype="float32")[labels]


def right(logits, q, kept=None, allowed=None):
    """Mean over the kept rows of sum_c q_c (lse - x_c), allowed classes only, and its gradient; in float64."""
    kept = np.ones(len(logits), bool) if kept is None else kept
    x = np.asarray(logits, "float64")[kept]
    q = np.asarray(q, "float64")[kept]
    if allowed is not None:
        x, q = np.where(allowed, x, -np.inf), np.where(allowed, q, 0)
    value, gradient = 0.0, np.zeros(np.shape(logits))
    if kept.any():
        highest = x.max(1, keepdims=True)
        lse = highest + np.log(np.exp(x - highest).sum(1, keepdims=True))
        with np.errstate(invalid="ignore"):
            terms = np.where((q == 0) & np.isneginf(x), 0, q * (lse - x))
        value = terms.sum() / kept.sum()
        gradient[kept] = (q.sum(1, keepdims=True) * np.exp(x - lse) - q) / kept.sum()
    return float(value), gradient


def smoothed(labels):
    return (1 - SMOOTHING) * one_hot(labels) + SMOOTHING / 3


# A key of ROWS is the row's title; its value is what every column is compared with: (value, gradient or None), or None
# where no value is right.
ROWS = {
    "Mean over the entries that count, one of four masked": right(LOGITS, one_hot(LABELS), MASK),
    "Nothing kept": (0.0, np.zeros((4, 3))),
    "NaN in the logits of a masked entry": right(LOGITS, one_hot(LABELS), MASK),
    "Label -1": None,
    "Label 7 of 3 classes": None,
    "One-hot labels, a logit of -inf at another class": right(EXCLUDED, one_hot(EXCLUDED_LABELS)),
    "Label smoothing, a logit of -inf": right(EXCLUDED, smoothed(EXCLUDED_LABELS)),
    "Label smoothing, a class excluded": right(
        LOGITS, (1 - SMOOTHING) * one_hot(EXCLUDED_LABELS) + SMOOTHING / 2, allowed=ALLOWED
    ),
    "Class weights: index against one-hot": None,
    "bfloat16 logits, mean over 512 entries": (
        right(wide_logits().astype("float64"), one_hot(WIDE_LABELS, 2000))[0],
        None,
    ),
}
TITLES = list(ROWS)
MEAN, NOTHING, NAN, MINUS, BEYOND, NEG_INF, SMOOTH_INF, EXCLUDE, INDEX, BFLOAT16 = TITLES


def number(x):
    return "NaN" if math.isnan(x) else f"{x:.4g}"


def describe(outcome, expected):
    """The text of a cell: outcome is (value, gradient), an exception, or text already."""
    if isinstance(outcome, str):
        return outcome
    if isinstance(outcome, Exception):
        return type(outcome).__name__
    value, gradient = outcome
    if expected is None:
        return "NaN" if math.isnan(value) else f"{number(value)}, no error"
    right_value, right_gradient = expected
    text = number(value)
    if not math.isnan(value) and not np.isclose(value, right_value, rtol=1e-5, atol=1e-7):
        nearest = value == float(np.asarray(right_value, "bfloat16"))
        text = f"{'rounded' if nearest else 'wrong'}: {text} (right {number(right_value)})"
    if gradient is None or right_gradient is None:
        return text
    gradient = np.asarray(gradient, "float64")
    if np.isnan(gradient).any():
        return f"{text}, gradient NaN"
    if not right_gradient.any():
        return f"{text}, gradient {'not 0' if gradient.any() else '0'}"
    if not np.allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6) and not text.startswith("wrong"):
        return f"{text}, gradient wrong"
    return text


def cell(ways, expected):
    """One text where all ways agree, else each text after the ways that give it."""
    groups = {}
    for way, call in ways.items():
        try:
            outcome = call() if callable(call) else call
        except Exception as error:
            outcome = error
        groups.setdefault(describe(outcome, expected), []).append(way)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(f'`{way}`' for way in given)}: {text}" for text, given in groups.items())


def both(index, dense):
    return (
        f"equal: {number(index)}"
        if math.isclose(index, dense, rel_tol=1e-5)
        else (f"{number(index)} against {number(dense)}")
    )


def torch_gradient(logits, loss):
    import torch

    x = torch.tensor(logits, requires_grad=True)
    value = loss(x)
    value.backward()
    return value.item(), x.grad.numpy()


def jax_gradient(logits, loss):
    import jax

    value, gradient = jax.value_and_grad(loss)(jax.numpy.asarray(logits))
    return float(value), np.asarray(gradient)


def torch_column():
    import torch
    from torch import tensor
    from torch.nn.functional import cross_entropy

    def ask(logits, labels, **options):
        return {"": lambda: torch_gradient(logits, lambda x: cross_entropy(x, tensor(labels), **options))}

    weights = tensor(CLASS_WEIGHTS)
    wide = tensor(wide_logits().astype("float32")).bfloat16()
    return {
        MEAN: ask(LOGITS, IGNORED),
        NOTHING: ask(LOGITS, np.full(4, -100)),
        NAN: ask(NAN_ROW, IGNORED),
        MINUS: ask(LOGITS, np.array([0, 2, -1, 1])),
        BEYOND: ask(LOGITS, np.array([0, 2, 7, 1])),
        NEG_INF: ask(EXCLUDED, one_hot(EXCLUDED_LABELS)),
        SMOOTH_INF: ask(EXCLUDED, EXCLUDED_LABELS, label_smoothing=SMOOTHING),
        EXCLUDE: {"": "not offered"},
        INDEX: {
            "": lambda: both(
                *(
                    cross_entropy(tensor(LOGITS), tensor(labels), weight=weights).item()
                    for labels in (LABELS, one_hot(LABELS))
                )
            )
        },
        BFLOAT16: {"": lambda: (cross_entropy(wide, torch.tensor(WIDE_LABELS)).item(), None)},
    }


def optax_column():
    import jax.numpy as jnp
    import optax

    def ask(logits, labels, mask=None, **options):
        return {
            "": lambda: jax_gradient(
                logits,
                lambda x: optax.softmax_cross_entropy_with_integer_labels(x, labels, where=mask).mean(where=mask),
            )
        }

    def ask_dense(logits, labels, where=None):
        return {"": lambda: jax_gradient(logits, lambda x: optax.softmax_cross_entropy(x, labels, where=where).mean())}

    return {
        MEAN: ask(LOGITS, LABELS, MASK),
        NOTHING: ask(LOGITS, LABELS, np.zeros(4, bool)),
        NAN: ask(NAN_ROW, LABELS, MASK),
        MINUS: ask(LOGITS, np.array([0, 2, -1, 1])),
        BEYOND: ask(LOGITS, np.array([0, 2, 7, 1])),
        NEG_INF: ask_dense(EXCLUDED, one_hot(EXCLUDED_LABELS)),
        SMOOTH_INF: ask_dense(EXCLUDED, optax.smooth_labels(one_hot(EXCLUDED_LABELS), SMOOTHING)),
        EXCLUDE: ask_dense(
            LOGITS,
            optax.smooth_labels(one_hot(EXCLUDED_LABELS), SMOOTHING),
            where=jnp.broadcast_to(ALLOWED, LOGITS.shape),
        ),
        INDEX: {"": "no class weights"},
        BFLOAT16: {
            "": lambda: (
                float(optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(wide_logits()), WIDE_LABELS).mean()),
                None,
            )
        },
    }


def keras_column():
    import keras
    from keras.losses import CategoricalCrossentropy as Dense
    from keras.losses import SparseCategoricalCrossentropy as Index

    gradient = torch_gradient if keras.backend.backend() == "torch" else jax_gradient

    def ask(logits, labels, loss=Index, weights=None, **options):
        return lambda: gradient(logits, lambda x: loss(from_logits=True, **options)(labels, x, sample_weight=weights))

    def masked(logits, mask):
        return {
            "ignore_class": ask(logits, np.where(mask, LABELS, -100), ignore_class=-100),
            "sample_weight": ask(logits, LABELS, weights=mask.astype("float32")),
        }

    wide = keras.ops.cast(wide_logits().astype("float32"), "bfloat16")
    return {
        MEAN: masked(LOGITS, MASK),
        NOTHING: masked(LOGITS, np.zeros(4, bool)),
        NAN: masked(NAN_ROW, MASK),
        MINUS: {"": ask(LOGITS, np.array([0, 2, -1, 1]))},
        BEYOND: {"": ask(LOGITS, np.array([0, 2, 7, 1]))},
        NEG_INF: {"": ask(EXCLUDED, one_hot(EXCLUDED_LABELS), Dense)},
        SMOOTH_INF: {"": ask(EXCLUDED, one_hot(EXCLUDED_LABELS), Dense, label_smoothing=SMOOTHING)},
        EXCLUDE: {"": "not offered"},
        INDEX: {"": "only in `fit`"},
        BFLOAT16: {
            f'dtype="{dtype}"': lambda dtype=dtype: (
                float(Index(from_logits=True, dtype=dtype)(WIDE_LABELS, wide)),
                None,
            )
            for dtype in ("float32", "bfloat16")
        },
    }


def maskloss_column():
    import functools

    import jax
    import jax.numpy as jnp
    import torch

    import maskloss as ml

    def on_numpy(logits, **given):
        value, gradient = ml.value_and_grad(functools.partial(ml.cross_entropy, **given))(logits)
        return float(value), gradient

    def on_torch(logits, **given):
        given = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
        return torch_gradient(logits, lambda x: ml.cross_entropy(x, **given))

    def on_jax(logits, **given):
        return jax_gradient(logits, lambda x: ml.cross_entropy(x, **given))

    def on_jit(logits, **given):
        given = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
        arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array)}
        options = {name: x for name, x in given.items() if name not in arrays}
        jitted = jax.jit(lambda x, arrays: ml.cross_entropy(x, **arrays, **options))
        return jax_gradient(logits, lambda x: jitted(x, arrays))

    def ask(logits, **given):
        return {
            way: lambda call=call: call(logits, **given)
            for way, call in {"numpy": on_numpy, "torch": on_torch, "jax": on_jax, "jax.jit": on_jit}.items()
        }

    wide = wide_logits()
    return {
        MEAN: ask(LOGITS, labels=LABELS, mask=MASK),
        NOTHING: ask(LOGITS, labels=LABELS, mask=np.zeros(4, bool)),
        NAN: ask(NAN_ROW, labels=LABELS, mask=MASK),
        MINUS: ask(LOGITS, labels=np.array([0, 2, -1, 1])),
        BEYOND: ask(LOGITS, labels=np.array([0, 2, 7, 1])),
        NEG_INF: ask(EXCLUDED, labels=one_hot(EXCLUDED_LABELS)),
        SMOOTH_INF: ask(EXCLUDED, labels=EXCLUDED_LABELS, label_smoothing=SMOOTHING),
        EXCLUDE: ask(LOGITS, labels=EXCLUDED_LABELS, label_smoothing=SMOOTHING, class_mask=ALLOWED),
        INDEX: {
            way: lambda call=call: both(
                *(call(LOGITS, labels=q, class_weights=CLASS_WEIGHTS)[0] for q in (LABELS, one_hot(LABELS)))
            )
            for way, call in {"numpy": on_numpy, "torch": on_torch, "jax": on_jax, "jax.jit": on_jit}.items()
        },
        BFLOAT16: {
            "numpy": lambda: (float(ml.cross_entropy(wide, WIDE_LABELS)), None),
            "torch": lambda: (
                ml.cross_entropy(torch.tensor(wide.astype("float32")).bfloat16(), torch.tensor(WIDE_LABELS)).item(),
                None,
            ),
            "jax": lambda: (float(ml.cross_entropy(jnp.asarray(wide), WIDE_LABELS)), None),
            "jax.jit": lambda: (float(jax.jit(ml.cross_entropy)(jnp.asarray(wide), WIDE_LABELS)), None),
        },
    }


def cells(column):
    ways = column()
    assert list(ways) == TITLES, f"{column.__name__} answers {list(ways)}"
    return {title: cell(ways[title], ROWS[title]) for title in TITLES}


def keras_cells(backend):
    done = subprocess.run(
        [sys.executable, __file__, "--keras"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Keras on {backend}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure():
    answers = (
        cells(torch_column),
        cells(optax_column),
        keras_cells("torch"),
        keras_cells("jax"),
        cells(maskloss_column),
    )
    return {title: dict(zip(COLUMNS, (answer[title] for answer in answers), strict=True)) for title in TITLES}


def render(record):
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    answers = table(["", *COLUMNS], [[title, *row.values()] for title, row in record["rows"].items()])
    return f"{answers}\nCalled on {record['date']} with {versions}, by `docs/scripts/frameworks_today.py`.\n"


def in_readme(text, block):
    """The text with the block between the markers replaced, or None where it has no markers."""
    if BEGIN not in text or END not in text:
        return None
    return marked(text, "frameworks-today", block)


def stale(rows, record, markdown, readme):
    """Why the written files do not say what was just measured: a list, empty where they do."""
    reasons = []
    for title in {**rows, **record["rows"]}:
        was, now = record["rows"].get(title), rows.get(title)
        if was is None or now is None:
            reasons.append(f"{title}: {'gone' if now is None else 'new'}")
            continue
        reasons += [
            f"{title}, {name}: was {was[name]!r}, is {now[name]!r}" for name in now if was.get(name) != now[name]
        ]
    if markdown != render(record):
        reasons.append(f"{MARKDOWN.name} differs from {RECORD.name}")
    if readme is not None and in_readme(readme, render(record)) not in (None, readme):
        reasons.append(f"the block in {README.name} differs from {RECORD.name}")
    return reasons


def main():
    parser, action = arguments(__doc__)
    action.add_argument("--keras", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.keras:
        print(json.dumps(cells(keras_column)))
        return 0
    rows = measure()
    readme = README.read_text() if README.exists() else None
    if given.check:
        if not RECORD.exists() or not MARKDOWN.exists():
            print(f"{RECORD.name} or {MARKDOWN.name} is missing: run with --write")
            return 1
        reasons = stale(rows, json.loads(RECORD.read_text()), MARKDOWN.read_text(), readme)
        print("\n".join(reasons) or f"{len(rows)} rows as recorded")
        return 1 if reasons else 0
    record = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rows": rows,
    }
    MARKDOWN.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    MARKDOWN.write_text(render(record))
    if readme is not None and (written := in_readme(readme, render(record))) is not None:
        README.write_text(written)
    print(render(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
