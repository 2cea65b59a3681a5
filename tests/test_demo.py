"""The example's loss, data and criteria; the training itself is `examples/bert_pretraining/run.py`."""

import ast
import importlib
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest

from tests import backends

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "bert_pretraining"
NO_LABEL = -100


@pytest.fixture
def example(monkeypatch):
    """example("data") imports that file of the example, and leaves no module of such a plain name behind."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


# masked-LM: the labels' probabilities are 1/4, 1/16, 1/2, so that the mean is (log 4 + log 16 + log 2) / 3 = 7/3 log 2.
# next-sentence: 3/4 and 1/2, so that the mean is (log 4/3 + log 2) / 2 = log(8/3) / 2.
# What has no label holds NaN.
NAN = np.nan
MLM = [[[1 / 2, 1 / 4, 1 / 4], [NAN] * 3], [[1 / 16, 1 / 16, 7 / 8], [1 / 4, 1 / 2, 1 / 4]]]
NSP = [[1 / 4, 3 / 4], [NAN] * 2, [1 / 2, 1 / 2]]
BATCH = {
    "mlm_labels": np.asarray([[1, NO_LABEL], [0, 1]], np.int32),
    "nsp_labels": np.asarray([1, 0, 0], np.int32),
    "is_pair": np.asarray([True, False, True]),
}
EXPECTED = {"mlm": 7 / 3 * log(2), "nsp": log(8 / 3) / 2}


def test_the_objective_is_the_same_number_on_every_backend(backend, example):
    objective = example("objective").objective
    with backends.settings(backend):
        mlm, nsp, identity, zeros = (
            backends.asarray(backend, x.astype(np.float32)) for x in (np.log(MLM), np.log(NSP), np.eye(3), np.zeros(3))
        )
        loss, stats = objective(
            (mlm, identity, zeros), nsp, {name: backends.asarray(backend, a) for name, a in BATCH.items()}
        )
        assert loss.shape == ()
        if not backend.shapes_only:
            assert float(loss) == pytest.approx(sum(EXPECTED.values()), rel=1e-6)
            assert {k: float(s.mean) for k, s in stats.items()} == pytest.approx(EXPECTED, rel=1e-6)
            assert [int(s.count) for s in stats.values()] == [3, 2]


def test_the_objective_is_two_calls_and_names_no_framework():
    tree = ast.parse((FOLDER / "objective.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported == {"maskloss", "functools"}
    called = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.endswith("cross_entropy")]
    assert called == ["linear_cross_entropy", "cross_entropy"]


VOCABULARY = 50
DOCUMENTS = [[[10, 11, 12, 13], [14, 15, 16], [17, 18]], [[20, 21], [22, 23, 24, 25]], [[30, 31, 32], [33, 34], [35]]]


@pytest.fixture
def drawn(example):
    """Batches, each with the tokens before masking."""
    pytest.importorskip("tokenizers")
    data, before = example("data"), []
    mask_tokens = data.mask_tokens
    data.mask_tokens = lambda tokens, *rest: (before.append(tokens), mask_tokens(tokens, *rest))[1]
    rng = np.random.default_rng(0)
    batches = list(data.batches(DOCUMENTS, rng, VOCABULARY, steps=40, batch_size=25, length=12))
    return data, list(zip(before, batches, strict=True))


def test_only_masked_positions_carry_labels(drawn):
    data, pairs = drawn
    for tokens, batch in pairs:
        kept = batch["mlm_labels"] != data.NO_LABEL
        rows = np.nonzero(kept)[0]
        places = batch["mlm_places"][kept]
        assert kept.any(axis=1).all()
        assert np.array_equal(batch["mlm_labels"][kept], tokens[rows, places])
        assert (tokens[rows, places] >= len(data.SPECIAL)).all()  # not padding, [CLS], [SEP]
        assert len(set(zip(rows, places, strict=True))) == kept.sum()
        changed = batch["tokens"] != tokens
        changed[rows, places] = False
        assert not changed.any()


def test_of_the_labelled_tokens_80_percent_are_masked_10_random_10_kept(example):
    pytest.importorskip("tokenizers")
    data = example("data")
    tokens = np.full((500, 40), 7, np.int32)
    masked, places, labels = data.mask_tokens(tokens, np.random.default_rng(0), 10**6)
    assert places.shape == labels.shape == (500, 6)  # 15 % of 40
    read = np.take_along_axis(masked, places, 1)
    # 3000 draws: a standard error of sqrt(0.8 * 0.2 / 3000) = 0.007; a random token is 7 once in 10**6
    assert (read == data.MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (read == 7).mean() == pytest.approx(0.1, abs=0.03)


def test_padding_is_not_attended_and_not_labelled(drawn):
    data, pairs = drawn
    for tokens, batch in pairs:
        assert np.array_equal(batch["attend"], tokens != data.PAD)
        labelled = np.zeros(tokens.shape, bool)
        kept = batch["mlm_labels"] != data.NO_LABEL
        labelled[np.nonzero(kept)[0], batch["mlm_places"][kept]] = True
        assert not labelled[tokens == data.PAD].any()


def test_single_segments_have_no_next_sentence_label_and_pairs_have_the_right_one(drawn):
    data, pairs = drawn
    follows = {tuple(d[i]): tuple(d[i + 1]) for d in DOCUMENTS for i in range(len(d) - 1)}
    seen = set()
    for tokens, batch in pairs:
        for row, part, is_pair, is_next in zip(
            tokens, batch["part"], batch["is_pair"], batch["nsp_labels"], strict=True
        ):
            first, *second = np.split(row[row != data.PAD], np.nonzero(row == data.SEP)[0] + 1)[:-1]
            assert first[0] == data.CLS
            assert len(second) == is_pair
            assert np.array_equal(part, (np.arange(12) >= len(first)) & (row != data.PAD))
            if is_pair:
                assert (follows[tuple(first[1:-1])] == tuple(second[0][:-1])) == is_next
            else:
                assert not is_next
            seen.add((bool(is_pair), int(is_next)))
    assert seen == {(False, 0), (True, 0), (True, 1)}


def test_a_loss_that_does_not_fall_is_told(example):
    compare = example("compare")
    uniform = {"mlm": 9.0, "nsp": 0.69}
    curves = {"mlm": [9.0] * 50 + [4.5] * 50, "nsp": [0.69] * 50 + [0.6] * 50}
    assert compare.fell(curves, uniform) == {"mlm": True, "nsp": True}
    assert compare.fell({**curves, "nsp": [0.69] * 100}, uniform) == {"mlm": True, "nsp": False}
    assert compare.fell({**curves, "mlm": [4.5] * 99 + [np.nan]}, uniform) == {"mlm": False, "nsp": True}


def test_a_backend_that_differs_is_told(example):
    spread = example("compare").spread
    assert spread([np.asarray([1.0, 2.0]), np.asarray([1.0, 2.5]), np.asarray([1.25, 2.25])]) == 0.5
    assert np.isnan(spread([np.asarray([1.0]), np.asarray([np.nan])]))


def test_the_wrong_ways_are_wrong_and_the_right_ones_right(example):
    compare = example("compare")
    mlm, nsp = (np.log(np.nan_to_num(np.asarray(p), nan=0.5)) for p in (MLM, NSP))
    rows = compare.wrong_ways(
        (mlm, np.eye(3), np.zeros(3)), nsp, {**BATCH, "nsp_labels": np.asarray([1, 0, 0])}, (1, 1)
    )
    for _, what, value, right in rows:
        assert (value == pytest.approx(right, rel=1e-12)) == what.startswith("maskloss")
