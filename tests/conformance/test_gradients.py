"""Gradients with respect to every floating argument, against formulas in 50 digits; exactly 0 where nothing is kept."""

from tests.conformance import observed
from tests.conformance.closeness import FORMATS, Expected
from tests.conformance.observed import belongs, bound_of, compare, observe, reduction_in, result_dtype, want
from tests.conformance.runs import REDUCED, UPSTREAM, leaves, wanted_gradients


def runs(backend):
    return observed.runs(backend, gradients=True)


def test_gradients(run, record):
    out = observe(run)
    if isinstance(out.gradients, Exception):
        raise out.gradients
    reduction = reduction_in(run)
    by_value = run.backend.gradient == "value_and_grad"
    if by_value and reduction == "none":
        reduction = "sum"
    wanted = want(run, reduction)
    gradients = wanted_gradients(run.case.name, run.dtype, reduction)
    names = leaves(run.case, reduction)
    assert set(out.gradients) == set(names)
    scalar = run.case.function in REDUCED and wanted.value.hi.shape == ()
    factor = UPSTREAM if scalar and not by_value else 1.0
    worst = []
    for name in names:
        gradient, dtype = out.gradients[name], out.inputs[name].dtype
        belongs(run, gradient, out.inputs[name], dtype, f"d {name}")
        hi, lo, scale = gradients[name]
        expected = Expected(hi * factor, lo * factor, scale * abs(factor))
        bound = bound_of(run, "sum", wanted.condition)
        computed_in = min(dtype, result_dtype(run), key=digits)
        worst.append(compare(run, gradient, expected, bound, computed_in, f"d {name}"))
    record(
        f"{run.case.function}, gradient",
        run.backend.name,
        run.dtype,
        run.mode,
        run.case.name,
        None if None in worst else max(worst),
    )


def digits(dtype):
    return FORMATS[dtype][0]
