"""The benchmarks' own arithmetic and checks; nothing is timed here."""

import ast
import json
import re
import sys
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import agreement, cases, child, gpu, linear, plots, providers, run, tables, timing
from benchmarks.cases import BERT, FORWARD, Case
from benchmarks.harness import Result, end
from benchmarks.library import Library, library_of
from docs.scripts import ROOT, performance


def imported_by(source):
    """The first names of what a program imports at its top, and what it imports of its own package."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    aliases = {alias.name for node in nodes for alias in node.names}
    own = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in modules}, {node.module for node in own} | (aliases if own else set())


def test_no_framework_is_imported_before_a_child_asks_for_it():
    assert imported_by("import torch.nn\nfrom jax import numpy\nfrom . import on_torch\nfrom .on_jax import a") == (
        {"torch", "jax"},
        {None, "on_jax", "torch.nn", "numpy", "on_torch", "a"},
    )
    for path in (ROOT / "benchmarks").glob("*.py"):
        others, own = imported_by(path.read_text())
        if not path.stem.startswith("on_"):
            assert others <= sys.stdlib_module_names | {"numpy", "docs"}, path.name
            assert not [name for name in own if name and name.startswith("on_")], path.name


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_provider_has_the_same_mean_place_and_the_same_neighbours(count):
    order, names = timing.order, list("abcdef"[:count])
    after = []
    for turn in range(count):
        turned = order(names, turn)
        assert {n: sum(i for i, m in enumerate(turned) if m == n) for n in names} == dict.fromkeys(names, 2 * count - 1)
        after += [first for first, second in pairwise(turned) if first == second]
    assert sorted(after) == names  # over the turns, each follows itself once


def test_a_drift_of_the_machine_leaves_the_ratio():
    # Every call is slower by 1 than the one before it, and b takes 10 more than a: over a round both meet the same
    # drift. With n = 2 the round is a b b a: a at 0 and 3, b at 1 and 2, so that the means differ by exactly 10.
    clock = iter(range(10_000))
    cost = {"a": 100.0, "b": 110.0}
    found = timing.interleaved(
        {name: (lambda name=name: cost[name]) for name in cost},
        limit=0,
        fewest=4,
        take=lambda call, repeats: call() + next(clock),
    )
    assert np.subtract(found["b"], found["a"]).tolist() == [10.0] * 4


def test_a_short_call_is_repeated_within_its_sample_and_a_slow_one_has_few_rounds():
    asked = []

    def take(call, repeats):
        asked.append(repeats)
        return call()

    found = timing.interleaved({"short": lambda: timing.SHORT / 8}, limit=0, fewest=3, take=take)
    assert asked == [1, 1] + [8] * 2 * 3
    assert found == {"short": [timing.SHORT / 8] * 3}
    # A limit of 4 s. Rounds of 1 s: 7 are within twice the limit; of 2 s: they are not; of 0.1 s: there is room for 40.
    assert [timing.rounds_within(4, seconds, 5) for seconds in (1, 2, 0.1)] == [timing.FEW, 5, timing.MOST]


def test_ratios_are_formed_within_a_round():
    # Rounds of 2/1, 40/10, 3/1, 6/2 and 1/1: ratios 2, 4, 3, 3, 1, whose quartiles are 2, 3, 3. The ratio of the means
    # would be 52/15.
    assert timing.ratios([2, 40, 3, 6, 1], [1, 10, 1, 2, 1]) == (3, 2, 3)
    # Differences 3, 1, 4, 5, 9: in order 1, 3, 4, 5, 9.
    assert timing.overheads([4, 3, 7, 9, 14], [1, 2, 3, 4, 5]) == (4, 3, 5)


def test_the_fit_finds_a_planted_line():
    line, sizes = timing.line, 2.0 ** np.arange(10, 26)
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


def agreement_of(*wrong, case=None, exceptions=()):
    """child.agreeing on providers of which the first is right, and each other answers wrong(value, gradient)."""
    value, gradient, labels = answers()

    def of(change):
        changed = change(value, gradient.copy())
        return lambda: {FORWARD: lambda: changed[0], cases.BOTH: lambda: changed}

    right = (lambda v, g: (v, g),)
    built = {
        providers.Provider(str(i), exceptions=exceptions if i else ()): of(change)
        for i, change in enumerate((*right, *wrong))
    }
    return child.agreeing(Library(), case or Case(6, 5), SimpleNamespace(labels=labels), built)


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
def test_a_wrong_provider_is_told(wrong, what):
    near = lambda v, g: (v * (1 + 1e-6), g * (1 + 1e-6))  # noqa: E731
    right, failed = agreement_of(wrong, near)
    assert list(right) == ["0", "2"]
    assert list(failed) == ["1"]
    assert re.search(f"Disagreement: 1: .*{what}", failed["1"])


def test_one_that_cannot_run_is_told_and_the_first_must():
    def absent(v, g):
        raise OSError("no library")

    _, failed = agreement_of(lambda v, g: (v, None))
    assert "1" in failed
    with pytest.raises(OSError, match="no library"):
        child.agreeing(Library(), Case(6, 5), None, {providers.Provider("0"): lambda: absent(0, 0)})


def test_a_failure_makes_a_result_that_no_page_is_made_from(tmp_path):
    result = Result(tmp_path / "some.json", "page", ("numpy",), rows=[])
    result.add(
        "rows", [{"group": "numpy", "case": [1, 2], "failed": {"scipy": "wrong"}}, {"group": "a", "failure": "b"}]
    )
    assert result.found["failures"] == ["numpy, [1, 2]: scipy: wrong", "a, b"]
    assert len(result.found["rows"]) == 1
    assert result.finish() == tmp_path / "some.failed"
    assert result.finish(strict=False) == tmp_path / "some.json"
    with pytest.raises(SystemExit, match="scipy: wrong"):
        end(result.found, tmp_path)


def test_an_entry_far_smaller_than_the_labels_counts_too():
    # Probabilities of 1e-5 beside a label's -1: wrong ones are 1e-4 of the whole norm, but all of that of the others.
    distance = agreement.distance_by_labels
    right = np.full((4, 100), 1e-5)
    right[:, 0] = -1
    wrong = np.where(right < 0, right, 2e-5)
    assert distance(wrong, right, np.zeros(4, int)) == pytest.approx(1)
    assert distance(right, right, np.zeros(4, int)) == 0
    assert distance(np.zeros((4, 100)), np.zeros((4, 100)), np.zeros(4, int)) == 0


def test_what_a_peer_cannot_answer_is_an_exception_with_a_reason():
    half = ("bfloat16", None, (1e-2, 5e-2), "rounded")
    peer = providers.Provider("peer", exceptions=(providers.NOTHING_KEPT, half))
    assert providers.exception_of(peer, Case(2, 3, kept=0)) == (None, "0/0 where nothing is kept")
    assert providers.exception_of(peer, Case(2, 3, "bfloat16")) == ((1e-2, 5e-2), "rounded")
    assert providers.exception_of(peer, Case(2, 3)) is None
    wrong = lambda v, g: (v * np.nan, g)  # noqa: E731
    assert not agreement_of(wrong, case=Case(6, 5, kept=0), exceptions=peer.exceptions)[1]
    assert agreement_of(wrong, case=Case(6, 5, kept=50), exceptions=peer.exceptions)[1]


def test_the_numpy_providers_agree_and_a_wrong_mask_is_told():
    """The real ones, on a small case: what runs before every timing."""
    library, case = library_of("page", "numpy"), Case(48, 7, kept=50, layout="padded")
    given = cases.arrays_of(case)
    x = library.arrays(case, given, "cpu")

    def failures(other):
        built = {
            providers.Provider(name): lambda y=y: child.calls_of(library, "maskloss", case, y, cases.DIRECTIONS)
            for name, y in (("ours", x), ("other", other))
        }
        return list(child.agreeing(library, case, given, built)[1])

    assert failures(x) == []
    assert failures(x._replace(mask=~x.mask)) == ["other"]


def test_a_gradient_is_read_within_its_time():
    """Unless the case says that it is not; and of a loss alone there is none."""

    class Told(Library):
        builders = {"maskloss": lambda case, x: (lambda: 1.0, lambda: (1.0, "a gradient"))}  # noqa: RUF012
        told = 0

        def read(self, gradient):
            assert gradient == "a gradient"
            self.told += 1

    library = Told()
    for read, told in ((True, 1), (False, 1)):
        calls = child.calls_of(library, "maskloss", Case(2, 3, read=read), None, cases.DIRECTIONS)
        assert (calls[cases.FORWARD](), calls[cases.BOTH]()) == (1.0, (1.0, "a gradient"))
        assert library.told == told


def test_a_loss_that_is_a_float_is_an_answer():
    """As scikit-learn's."""
    assert [x.item() for x in Library().answer(0.5)] == [0.5]


def test_a_wrong_gradient_of_a_projection_is_told():
    case, ours = Case(6, 5, features=3), (np.asarray(1.0), np.ones((6, 3)), np.ones((5, 3)))
    agreement.check(case, "other", ours, ours, None)
    apart = (*ours[:2], ours[2] * np.asarray([1, 1, 1.001]))
    with pytest.raises(agreement.Disagreement, match="other: the gradient is"):
        agreement.check(case, "other", apart, ours, None)


def test_a_case_of_each_kind_is_measured():
    """NumPy's, in this process: a row for each direction, with a floor of the least work at the speeds measured."""
    options = {"directions": cases.DIRECTIONS, "compile": False, "quick": False, "device": "cpu"}
    library = library_of("page", "numpy")
    library.providers = library.providers[:1]
    rows = list(child.cases(library, {**options, "limit": 0, "fewest": 1, "cases": [[40, 9, "float32", 50]]}))
    assert [row["direction"] for row in rows] == list(cases.DIRECTIONS)
    assert [row["kept logits"] for row in rows] == [180, 180]
    assert all(len(row["seconds"]["maskloss"]) == 1 for row in rows)
    assert child.floor(Case(40, 9, kept=50), np.arange(40) < 20, cases.BOTH, {"read": 720e9, "write": 144e9}) == {
        "kept logits": 180,
        "floor": 1.1e-8,
        "GB/s": [720.0, 144.0],
    }
    assert child.floor(Case(8, 1000, features=10), None, cases.BOTH, {}) == {"kept logits": 8000}
    (row,) = child.cases(library, {**options, "limit": 0, "fewest": 1, "cases": [[40, 9, "float16"]]})
    assert "40x9, float16, no mask: KeyError" in row["failure"]


def test_masks_keep_what_the_case_says():
    rng = np.random.default_rng(0)
    for kept in cases.FRACTIONS:
        for layout in ("scattered", "prefix", "padded"):
            mask = cases.mask_of(Case(2048, 3, kept=kept, layout=layout), rng)
            assert mask.mean() == pytest.approx(kept / 100, abs=0.005)
            assert mask.size == 2048
            if layout != "scattered":
                assert (np.diff(mask.astype(int), axis=-1) <= 0).all()
    assert cases.mask_of(Case(8, 3, kept=2), rng).sum() == 1
    # 15 of 100 rows of 7 float64 are read, and for the gradient all are written.
    case = Case(100, 7, "float64", 15)
    mask = cases.mask_of(case, rng)
    assert [cases.least_work(case, mask, d) for d in cases.DIRECTIONS] == [
        {"read": 15 * 56, "write": 0},
        {"read": 15 * 56, "write": 100 * 56},
    ]
    assert cases.least_work(Case(8, 1000, features=10), None, cases.BOTH) == {"operations": 6 * 8 * 10 * 1000}


def test_every_case_and_provider_is_named_once():
    for group in providers.GROUPS:
        listed = cases.cases_of(group)
        assert listed[: len(cases.SHOWN) * 2] == cases.shown()
        assert len({cases.name_of(case) for case in listed}) == len(listed)
        names = [p.name for p in providers.SETTINGS["page"][group].providers]
        assert {providers.OURS, providers.PEER[group], *plots.NAMES[group]} <= set(names)
    for group, names in (*linear.MEASURED.items(), *plots.NAMES_OF_LINEAR.items()):
        assert set(names) <= {p.name for p in providers.SETTINGS["linear"][group].providers}


@pytest.mark.parametrize(
    ("setting", "group"), [(setting, group) for setting, groups in providers.SETTINGS.items() for group in groups]
)
def test_every_provider_has_a_builder_and_every_builder_a_provider(setting, group):
    for package in {"torch": ["torch"], "jax": ["jax", "optax"]}.get(group, []):
        pytest.importorskip(package)
    listed = [p.name for p in providers.SETTINGS[setting][group].providers]
    assert sorted(listed) == sorted(library_of(setting, group).builders)


def test_import_times_are_read():
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |     array_api_compat._internal\n"
        "import time:       400 |        500 |   array_api_compat\n"
        "import time:       700 |       1200 |   maskloss._arrays\n"
        "import time:       900 |        900 |   typing\n"
        "import time:       900 |       3000 | maskloss\n"
    )
    # 3000 in all, 500 of which array_api_compat; 700 + 900 themselves.
    assert run.import_time(text) == {"all": 3.0, "without array_api_compat": 2.5, "own": 1.6}


def result_of(case, **changes):
    seconds = {"maskloss": [1e-3, 1e-3], "F.cross_entropy": [2e-3, 2e-3], "F.cross_entropy, kept rows": [5e-4, 5e-4]}
    row = {"group": "torch", "case": list(case), "direction": "forward", "kept logits": 10, "floor": 1e-4}
    row |= {"GB/s": [10.0, 20.0], "took": 1.0, "seconds": seconds}
    run = {"machine": {"cpu": "a processor", "cores": 2, "GiB": 8}, "versions": {"python": "3"}, "date": "2026-01-01"}
    parts = {"memory": [], "first call": [], "overhead": [], "quick": False, "failures": [], "seconds": 60}
    return {**run, **parts, "rows": [row], **changes}


def test_tables_show_the_ratio_and_the_peer_that_wins():
    text = tables.shown(result_of(Case(*BERT, kept=15)))
    assert "| PyTorch, forward, 15 % kept | F.cross_entropy | 2 (2–2) |" in text
    assert "| PyTorch, forward, 15 % kept | 0.5 F.cross_entropy, kept rows |" in text
    assert "**500 µs**" in tables.times(result_of(Case(*BERT, kept=15)))
    assert [tables.duration(t) for t in (2.5, 0.0125, 1.5e-6)] == ["2.5 s", "12.5 ms", "1.5 µs"]


def test_stale_tables_and_plots_are_told(tmp_path):
    assert performance.stale(tmp_path) == ["performance.json is missing: `nox -s bench` measures it"]
    text = json.dumps(result_of(Case(*BERT, kept=15)))
    (tmp_path / "performance.json").write_text(text)
    for name, page in performance.pages(json.loads(text)).items():
        (tmp_path / name).write_text(page)
    for name in plots.PICTURES:
        (tmp_path / f"{name}.svg").write_bytes(b"<svg> Source " + performance.mark_of(text).encode() + b" and so on")
    assert performance.stale(tmp_path) == []

    page, picture = tmp_path / "performance_times.md", tmp_path / "performance_rows.svg"
    page.write_text(page.read_text().replace("500 µs", "400 µs"))
    picture.write_bytes(b"<svg> of another run")
    told = [f"{path.name} is not made from performance.json" for path in (page, picture)]
    assert performance.stale(tmp_path) == told

    (tmp_path / "performance.json").write_text(text.replace('"quick": false', '"quick": true'))
    assert "quick run" in performance.stale(tmp_path)[0]


def test_the_same_result_makes_the_same_plots(tmp_path):
    pytest.importorskip("matplotlib")
    result = result_of(Case(*BERT, kept=15))
    result["memory"] = [
        {"group": "torch", "case": list(Case(*BERT)), "direction": way, "provider": name, "extra": extra}
        for way, name, extra in product(cases.DIRECTIONS, ("maskloss", "F.cross_entropy"), (0,))
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plots.save(plots.PICTURES, result, tmp_path / name, "sha256:0")
    for name in plots.PICTURES:
        one, two = ((tmp_path / folder / f"{name}.svg").read_text() for folder in ("one", "two"))
        assert one == two
        assert "sha256:0" in one
        assert "<image" not in one  # drawn, and not painted: it stays sharp at any size
    assert ">0</text>" in (tmp_path / "one" / "performance_memory.svg").read_text()


def test_the_page_of_a_gpu_says_what_was_run():
    assert gpu.page(None).startswith("Not yet run")
    row = {"group": "torch", "case": list(Case(8, 1000, "bfloat16", 50)), "failed": {"liger_kernel": "OSError: no"}}
    row |= {
        "floor": 0.024,
        "seconds": {providers.OURS: [0.5], "other": [1.0]},
        "extra": {providers.OURS: 2**30, "other": None},
    }
    other = row | {"case": list(Case(8, 9, "bfloat16", cold=True)), "seconds": {"liger_kernel": [0.25]}, "failed": {}}
    result = {"rows": [row, other], "failures": ["torch, 8: liger_kernel: OSError: no"], "device": "a GPU"}
    text = gpu.page(result | {"versions": {"torch": "1", "cupy": "not installed"}, "date": "2026-11-22"})
    assert "| 8 × 1000, 50 %, bfloat16 | 24 | 500, 1.00 GiB | 1000 (2) | failed |" in text
    assert "| 8 × 9, all, cold cache, bfloat16 | 24 |" in text
    assert "- failed: torch, 8: liger_kernel: OSError: no" in text
    assert text.endswith("Measured on 2026-11-22: a GPU; torch 1.\n")


def test_stale_tables_of_the_linear_losses_are_told(tmp_path):
    assert len(performance.linear_stale(tmp_path)) == 1
    result = {"machine": {"cpu": "a", "cores": 2, "GiB": 3}, "versions": {"torch": "1"}, "date": "2026-11-22"}
    row = {"group": "torch", "shape": [4, 2, 3, None], "floor": 0.5, "seconds": {providers.OURS: [1.0], "other": [2.0]}}
    extra = {"group": "torch", "shape": [2048, 384, 30522, None], "provider": providers.OURS, "extra": 0.125}
    (tmp_path / "linear.json").write_text(json.dumps(result | {"rows": [row], "memory": [extra]}))
    assert len(performance.linear_stale(tmp_path)) == 2
    text = (tmp_path / "linear.json").read_text()
    (tmp_path / "linear.svg").write_bytes(b"<svg> Source " + performance.mark_of(text).encode() + b" and so on")
    (tmp_path / "linear.md").write_text(linear.page(result | {"rows": [row], "memory": [extra]}))
    assert performance.linear_stale(tmp_path) == []
    assert "| 4 × 2 × 3, all | 500 | 1000 | 2000 (2) |" in (tmp_path / "linear.md").read_text()
