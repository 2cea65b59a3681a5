"""Values: every case on every backend in every mode, against scalar loops in 50 digits, in units in the last place."""

from tests.conformance.closeness import expected, summation
from tests.conformance.observed import (
    belongs,
    bound_of,
    compare,
    number_of_entries,
    observe,
    reduction_in,
    result_dtype,
    runs,
    want,
)
from tests.reference import number

__all__ = ["runs"]


def test_values(run, record):
    out = observe(run)
    case, dtype, first = run.case, result_dtype(run), next(iter(out.inputs.values()))
    assert out.changed == [], "inputs were written to"
    for name, array in out.outputs.items():
        belongs(run, array, first, array.dtype if name == "denominator" else dtype, name)
    key = run.backend.name, run.dtype, run.mode, case.name
    reduction = reduction_in(run)
    if "entries" in out.outputs:
        worst = compare(run, out.outputs["entries"], want(run, "none").value, case.ulps, dtype, "per entry")
        record(case.function, *key, worst)
    wanted = want(run, reduction)
    reduced = case.function in ("cross_entropy", "reduce") and reduction != "none"
    bound = bound_of(run, reduction, wanted.condition)
    worst = compare(run, out.outputs["value"], wanted.value, bound, dtype, "value")
    record(case.function + (", reduced" if reduced else ""), *key, worst)
    for other in set(out.outputs) & {"again", "without a graph"}:
        compare(run, out.outputs[other], wanted.value, bound, dtype, other)
    if "denominator" in out.outputs:
        divisor(run, out.outputs["denominator"], want(run, reduction).stats)
    if out.stats:
        statistics(run, out, wanted.stats, first)


def divisor(run, array, wanted_stats):
    """That of the statistics, before there are logits: a count where nothing weighs."""
    case, value = run.case, wanted_stats.denominator
    distributions = case.inputs["labels"].dtype.kind == "f"
    weighs = distributions or bool({"weights", "class_weights"} & {*case.inputs, *case.options})
    counts = case.options.get("reduction", "mean") not in ("none", "sum", "mean") or not weighs
    assert array.shape == (), "denominator"
    assert array.dtype.startswith("int" if counts else "float"), "denominator"
    if array.numbers is None:
        return
    if counts:
        assert array.numbers == value, "denominator"
    else:
        wanted = expected(number(value), max(wanted_stats.scales.denominator, number(case.floor)))
        compare(run, array, wanted, case.ulps + 1 + summation(number_of_entries(run)), array.dtype, "denominator")


def statistics(run, out, wanted_stats, first):
    for name, array in out.stats.items():
        integer = name in ("count", "correct")
        assert array.shape == (), name
        belongs(run, array, first, array.dtype if integer else result_dtype(run), name)
        assert array.dtype.startswith(("int", "uint")) == integer, name
        value = getattr(wanted_stats, name)
        if array.numbers is None or value is None:
            continue
        if integer:
            assert array.numbers == value, name
        else:
            floor = number(run.case.floor) * number_of_entries(run)
            wanted = expected(number(value), max(getattr(wanted_stats.scales, name), floor))
            bound = run.case.ulps + 1 + summation(number_of_entries(run))
            compare(run, array, wanted, bound, array.dtype, name)
