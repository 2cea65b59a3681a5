"""The benchmarks' own arithmetic and checks; nothing is timed here."""

import ast
import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER, SCRIPTS = ROOT / "benchmarks", ROOT / "docs" / "scripts"


@pytest.fixture
def bench(monkeypatch):
    """bench("timing") imports that file, and leaves no module of such a plain name behind."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for path in (*FOLDER.glob("*.py"), SCRIPTS / "performance.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


def test_no_framework_is_imported_before_a_child_asks_for_it():
    for path in FOLDER.glob("*.py"):
        imports = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {alias.name.split(".")[0] for n in imports if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module.split(".")[0] for n in imports if isinstance(n, ast.ImportFrom)}
        assert names <= sys.stdlib_module_names | {p.stem for p in FOLDER.glob("*.py")} | {"numpy"}, path.name


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_provider_has_the_same_mean_place_and_the_same_neighbours(bench, count):
    order, names = bench("timing").order, list("abcdef"[:count])
    after = []
    for turn in range(count):
        turned = order(names, turn)
        assert {n: sum(i for i, m in enumerate(turned) if m == n) for n in names} == dict.fromkeys(names, 2 * count - 1)
        after += [first for first, second in pairwise(turned) if first == second]
    assert sorted(after) == names  # over the turns, each follows itself once


def test_a_drift_of_the_machine_leaves_the_ratio(bench):
    # Every call is slower by 1 than the one before it, and b takes 10 more than a: over a round both meet the same
    # drift. With n = 2 the round is a b b a: a at 0 and 3, b at 1 and 2, so that the means differ by exactly 10.
    timing, clock = bench("timing"), iter(range(10_000))
    cost = {"a": 100.0, "b": 110.0}
    found = timing.interleaved(
        {name: (lambda name=name: cost[name]) for name in cost},
        limit=0,
        fewest=4,
        take=lambda call, repeats: call() + next(clock),
    )
    assert np.subtract(found["b"], found["a"]).tolist() == [10.0] * 4


def test_a_short_call_is_repeated_within_its_sample_and_a_slow_one_has_few_rounds(bench):
    timing, asked = bench("timing"), []

    def take(call, repeats):
        asked.append(repeats)
        return call()

    found = timing.interleaved({"short": lambda: timing.SHORT / 8}, limit=0, fewest=3, take=take)
    assert asked == [1, 1] + [8] * 2 * 3
    assert found == {"short": [timing.SHORT / 8] * 3}
    # A limit of 4 s. Rounds of 1 s: 7 are within twice the limit; of 2 s: they are not; of 0.1 s: there is room for 40.
    assert [timing.rounds_within(4, seconds, 5) for seconds in (1, 2, 0.1)] == [timing.FEW, 5, timing.MOST]


def test_ratios_are_formed_within_a_round(bench):
    # Rounds of 2/1, 40/10, 3/1, 6/2 and 1/1: ratios 2, 4, 3, 3, 1, whose quartiles are 2, 3, 3. The ratio of the means
    # would be 52/15.
    timing = bench("timing")
    assert timing.ratios([2, 40, 3, 6, 1], [1, 10, 1, 2, 1]) == (3, 2, 3)
    # Differences 3, 1, 4, 5, 9: in order 1, 3, 4, 5, 9.
    assert timing.overheads([4, 3, 7, 9, 14], [1, 2, 3, 4, 5]) == (4, 3, 5)


def test_the_fit_finds_a_planted_line(bench):
    line, sizes = bench("timing").line, 2.0 ** np.arange(10, 26)
    a, b, off = line(sizes, 2e-4 + 3e-10 * sizes)
    assert (a, b) == pytest.approx((2e-4, 3e-10), rel=1e-9)
    assert off < 1e-9
    # One of the times is twice what it should be: the line is off by about half of it, or by about as much elsewhere.
    seconds = 2e-4 + 3e-10 * sizes
    seconds[3] *= 2
    assert line(sizes, seconds)[2] > 0.3


def answers(rows=6, classes=5):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    value = -np.log(probs[np.arange(rows), labels]).mean()
    probs[np.arange(rows), labels] -= 1
    return np.asarray(value), probs / rows, labels


def fake_group(bench, *wrong):
    """A group whose second provider answers wrong(value, gradient)."""
    value, gradient, labels = answers()
    provider = bench("provider").Provider

    def of(change):
        changed = change(value, gradient.copy())
        return (lambda: changed[0]), (lambda: changed)

    right = (lambda v, g: (v, g),)
    built = [(provider(str(i), "", None), of(change)) for i, change in enumerate((*right, *wrong))]
    given = SimpleNamespace(labels=labels)
    return SimpleNamespace(to_numpy=lambda x: x), bench("workloads").Case(6, 5), given, built


def changed_at(gradient, place, factor):
    gradient[place] *= factor
    return gradient


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda v, g: (v * 1.001, g), "value is 0.001"),
        (lambda v, g: (v * np.nan, g), "value is nan"),
        (lambda v, g: (v, g * 1.001), "gradient is 0.001"),
        (lambda v, g: (v, changed_at(g, 2, 0)), "gradient"),
        (lambda v, g: (v, np.full_like(g, np.nan)), "gradient is nan"),
        (lambda v, g: (v, g[:-1]), "shape"),
    ],
)
def test_a_wrong_provider_is_told(bench, wrong, what):
    checked, error = bench("measure").checked, bench("agreement").Disagreement
    checked(*fake_group(bench, lambda v, g: (v * (1 + 1e-6), g * (1 + 1e-6))))
    with pytest.raises(error, match=f"1: .*{what}"):
        checked(*fake_group(bench, wrong))


def test_an_entry_far_smaller_than_the_labels_counts_too(bench):
    # Probabilities of 1e-5 beside a label's -1: wrong ones are 1e-4 of the whole norm, but all of that of the others.
    distance = bench("agreement").gradient_distance
    right = np.full((4, 100), 1e-5)
    right[:, 0] = -1
    wrong = np.where(right < 0, right, 2e-5)
    assert distance(wrong, right, np.zeros(4, int)) == pytest.approx(1)
    assert distance(right, right, np.zeros(4, int)) == 0
    assert distance(np.zeros((4, 100)), np.zeros((4, 100)), np.zeros(4, int)) == 0


def test_what_a_peer_cannot_answer_is_an_exception_with_a_reason(bench):
    provider, Case = bench("provider"), bench("workloads").Case
    half = ("bfloat16", None, (1e-2, 5e-2), "rounded")
    peer = provider.Provider("peer", "", None, exceptions=(provider.NOTHING_KEPT, half))
    assert provider.exception_of(peer, Case(2, 3, kept=0)) == (None, "0/0 where nothing is kept")
    assert provider.exception_of(peer, Case(2, 3, "bfloat16")) == ((1e-2, 5e-2), "rounded")
    assert provider.exception_of(peer, Case(2, 3)) is None
    group, case, given, built = fake_group(bench, lambda v, g: (v * np.nan, g))
    built[1] = (peer, built[1][1])
    bench("measure").checked(group, case._replace(kept=0), given, built)


def test_the_numpy_providers_agree_and_a_wrong_mask_is_told(bench):
    """The real ones, on a small case: what runs before every timing."""
    workloads, measure, group = bench("workloads"), bench("measure"), bench("group_numpy")
    case = workloads.Case(48, 7, kept=50, layout="padded")
    given = workloads.arrays_of(case)
    x = group.arrays(case, given)
    ours, other = group.PROVIDERS[0], x._replace(mask=~x.mask)
    measure.checked(group, case, given, [(ours, ours.build(case, x)), (ours, ours.build(case, x))])
    with pytest.raises(bench("agreement").Disagreement):
        measure.checked(group, case, given, [(ours, ours.build(case, x)), (ours, ours.build(case, other))])


def test_masks_keep_what_the_case_says(bench):
    workloads = bench("workloads")
    rng = np.random.default_rng(0)
    for kept in workloads.FRACTIONS:
        for layout in ("scattered", "prefix", "padded"):
            mask = workloads.mask_of(workloads.Case(2048, 3, kept=kept, layout=layout), rng)
            assert mask.mean() == pytest.approx(kept / 100, abs=0.005)
            assert mask.size == 2048
            if layout != "scattered":
                assert (np.diff(mask.astype(int), axis=-1) <= 0).all()
    assert workloads.mask_of(workloads.Case(8, 3, kept=2), rng).sum() == 1
    # 15 of 100 rows of 7 float64 are read, and for the gradient all are written.
    case = workloads.Case(100, 7, "float64", 15)
    mask = workloads.mask_of(case, rng)
    assert [workloads.least_bytes(case, mask, d) for d in workloads.DIRECTIONS] == [(15 * 56, 0), (15 * 56, 100 * 56)]


def test_every_case_and_provider_is_named_once(bench):
    workloads, tables = bench("workloads"), bench("tables")
    for group in tables.GROUPS:
        listed = workloads.cases_of(group)
        assert listed[: len(workloads.SHOWN) * 2] == workloads.shown()
        assert len({workloads.name_of(case) for case in listed}) == len(listed)
        names = [p.name for p in bench(f"group_{group}").PROVIDERS]
        assert len(set(names)) == len(names)
        assert {tables.OURS, tables.PEER[group], *bench("plots").NAMES[group]} <= set(names)


def test_import_times_are_read(bench):
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |     array_api_compat._internal\n"
        "import time:       400 |        500 |   array_api_compat\n"
        "import time:       700 |       1200 |   maskloss._arrays\n"
        "import time:       900 |        900 |   typing\n"
        "import time:       900 |       3000 | maskloss\n"
    )
    # 3000 in all, 500 of which array_api_compat; 700 + 900 themselves.
    assert bench("run").import_time(text) == {"all": 3.0, "without array_api_compat": 2.5, "own": 1.6}


def result_of(case, **changes):
    seconds = {"maskloss": [1e-3, 1e-3], "F.cross_entropy": [2e-3, 2e-3], "F.cross_entropy, kept rows": [5e-4, 5e-4]}
    row = {"group": "torch", "case": list(case), "direction": "forward", "kept logits": 10, "floor": 1e-4}
    row |= {"GB/s": [10.0, 20.0], "took": 1.0, "seconds": seconds}
    run = {"machine": {"cpu": "a processor", "cores": 2, "GiB": 8}, "versions": {"python": "3"}, "date": "2026-01-01"}
    parts = {"memory": [], "first call": [], "overhead": [], "quick": False, "failures": [], "seconds": 60}
    return {**run, **parts, "rows": [row], **changes}


def test_tables_show_the_ratio_the_goal_and_the_peer_that_wins(bench):
    workloads, tables = bench("workloads"), bench("tables")
    text = tables.shown(result_of(workloads.Case(*workloads.BERT, kept=15)))
    assert "| PyTorch, forward, 15 % kept | F.cross_entropy | 2 (2–2); goal 12, **not reached** |" in text
    assert "| PyTorch, forward, 15 % kept | 0.5 F.cross_entropy, kept rows |" in text
    assert "**500 µs**" in tables.times(result_of(workloads.Case(*workloads.BERT, kept=15)))
    assert [tables.duration(t) for t in (2.5, 0.0125, 1.5e-6)] == ["2.5 s", "12.5 ms", "1.5 µs"]


def test_stale_tables_and_plots_are_told(bench, tmp_path):
    performance, workloads = bench("performance"), bench("workloads")
    assert performance.stale(tmp_path) == ["performance.json is missing: `nox -s bench` measures it"]
    text = json.dumps(result_of(workloads.Case(*workloads.BERT, kept=15)))
    (tmp_path / "performance.json").write_text(text)
    for name, page in performance.pages(json.loads(text)).items():
        (tmp_path / name).write_text(page)
    for name in bench("plots").PICTURES:
        (tmp_path / f"{name}.png").write_bytes(b"PNG Source " + performance.mark_of(text).encode() + b" and so on")
    assert performance.stale(tmp_path) == []

    page, picture = tmp_path / "performance_times.md", tmp_path / "performance_rows.png"
    page.write_text(page.read_text().replace("500 µs", "400 µs"))
    picture.write_bytes(b"PNG of another run")
    told = [f"{path.name} is not made from performance.json" for path in (page, picture)]
    assert performance.stale(tmp_path) == told

    (tmp_path / "performance.json").write_text(text.replace('"quick": false', '"quick": true'))
    assert "quick run" in performance.stale(tmp_path)[0]


def test_a_wrong_linear_loss_is_told(bench):
    linear = bench("linear")
    ours, apart = (1.0, np.ones(3), np.ones(2)), (1.0, np.ones(3), np.asarray([1.0, 1.001]))
    linear.agree((linear.OURS, linear.PRODUCTS, "other"), {linear.OURS: ours, "other": ours}.get)
    with pytest.raises(SystemExit, match="other is"):
        linear.agree((linear.OURS, "other"), {linear.OURS: ours, "other": apart}.get)


def test_the_page_of_a_gpu_says_what_was_run(bench):
    gpu = bench("gpu")
    assert gpu.table(None).startswith("Not yet run")
    case = gpu.Case(8, 1000, 50)
    row = {"group": "torch", "case": list(case), "failed": {"liger_kernel": "OSError: no"}, "device": "a GPU"}
    # 4 of 8 rows read, 8 written, 2 bytes each: 24000 bytes, at 1e6 a second.
    row |= {
        "rates": [1e6, 1e9],
        "seconds": {gpu.OURS: [0.5], "other": [1.0]},
        "extra": {gpu.OURS: 2**30, "other": None},
    }
    text = gpu.table({"rows": [row], "versions": {"torch": "1", "cupy": "not installed"}, "date": "2026-11-22"})
    assert "| 8 × 1000, 50 % | 24 | 500, 1.00 GiB | 1000 (2) |" in text
    assert "liger_kernel failed: OSError: no" in text
    assert text.endswith("Measured on 2026-11-22: a GPU; torch 1.\n")
    projection = gpu.Case(8, 1000, features=10)
    assert gpu.least(projection, [1e6, 1e9]) == 6 * 8 * 10 * 1000 / 1e9


def test_stale_tables_of_the_linear_losses_are_told(bench, tmp_path):
    page, linear = bench("performance"), bench("linear")
    assert len(page.linear_stale(tmp_path)) == 1
    result = {"machine": {"cpu": "a", "cores": 2, "GiB": 3}, "versions": {"torch": "1"}, "date": "2026-11-22"}
    row = {"group": "torch", "shape": [4, 2, 3, None], "floor": 0.5, "seconds": {linear.OURS: [1.0], "other": [2.0]}}
    extra = {"group": "torch", "shape": list(linear.BERT), "provider": linear.OURS, "extra": 0.125}
    (tmp_path / "linear.json").write_text(json.dumps(result | {"rows": [row], "memory": [extra]}))
    assert len(page.linear_stale(tmp_path)) == 2
    text = (tmp_path / "linear.json").read_text()
    (tmp_path / "linear.png").write_bytes(b"PNG Source " + page.mark_of(text).encode() + b" and so on")
    (tmp_path / "linear.md").write_text(linear.table(result | {"rows": [row], "memory": [extra]}))
    assert page.linear_stale(tmp_path) == []
    assert "| 4 × 2 × 3, all | 500 | 1000 | 2000 (2; 2–2) |" in (tmp_path / "linear.md").read_text()
