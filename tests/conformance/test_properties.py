"""Properties of drawn problems, on every chosen backend: against the reference, and what must change nothing."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskloss as ml
from tests import backends, reference
from tests.conformance.closeness import errors, expected
from tests.conformance.runs import is_array

# Few shapes: a tracer compiles each.
SHAPES = ((), (4,), (1, 3), (2, 3))
LABELS = ("int8", "uint8", "int32", "int64")
LOGITS = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, -0.0, 1e-30, 1e4, -1e4, 88.0, -104.0, -np.inf]))
REDUCTIONS = ("none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences")

UNPADDED = ("sum", "mean", "mean_over_kept", "mean_over_sequences")


@st.composite
def problems(draw, shapes=SHAPES, reductions=REDUCTIONS, classes=(1, 2, 5)):
    """Inputs in float64 that float32 holds, and options. Weights are positive: a sum of them is well conditioned."""
    shape, classes = draw(st.sampled_from(shapes)), draw(st.sampled_from(classes))
    inputs = {
        "logits": draw(hnp.arrays(np.float64, (*shape, classes), elements=LOGITS)),
        "labels": draw(hnp.arrays(draw(st.sampled_from(LABELS)), shape, elements=st.integers(0, classes - 1))),
        "mask": draw(hnp.arrays(bool, shape)),
    }
    if draw(st.booleans()):
        inputs["weights"] = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.25, 1.0, 3.0])))
    if draw(st.booleans()):
        inputs["class_weights"] = draw(hnp.arrays(np.float64, classes, elements=st.sampled_from([0.0, 0.5, 2.0])))
    options = {"reduction": draw(st.sampled_from(reductions))}
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.125, 1.0]))
    if draw(st.booleans()):
        options["z_loss"] = 0.25
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 20.0]))
    return inputs, options


def call(backend, inputs, options, dtype="float32"):
    with backends.settings(backend):
        arrays = {
            n: backends.asarray(backend, a.astype(dtype) if a.dtype.kind == "f" else a) if is_array(a) else a
            for n, a in inputs.items()
        }
        return backends.to_numpy(backend, ml.cross_entropy(**arrays, **options))


def want(inputs, options):
    out = reference.cross_entropy(**inputs, **options)
    return expected(out.value, out.scale), float(out.condition)


def close(got, inputs, options):
    """Within the bound of test_values, in last places of 1 where the scale is less (see NEAR_ONE in cases_numbers)."""
    value, _ = want(inputs, options)
    weight = np.max(np.abs(inputs.get("weights", 1.0)), initial=0.0)
    floor = max(1.0, weight) if options["reduction"] in ("none", "sum") else 4.0
    value = value._replace(scale=np.where(value.scale == 0, 0, np.maximum(value.scale, floor * 4)))
    if value.hi.shape == ():
        value = value._replace(scale=np.maximum(value.scale, floor * inputs["labels"].size))
    worst = errors(got, value, "float32").max(initial=0)
    assert worst <= 16, f"{got} against {value.hi}: {worst} ulps"


def check(backend, holds, **drawn):
    """holds(problem) on many problems; on JAX, which compiles each shape, on fewer and of one shape."""
    backends.named(backend, "numpy", "strict-limited", "torch", "jax", "torch-cuda", "jax-gpu", "cupy")
    if backend.library == "jax":
        drawn |= {"shapes": drawn.get("shapes", SHAPES)[-1:], "classes": (5,)}
    many = 10 if backend.library == "jax" else 40
    quiet = settings(max_examples=many, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    quiet(given(problems(**drawn))(holds))()


def test_reference(backend):
    check(backend, lambda problem: close(call(backend, *problem), *problem))


def test_index_is_one_hot(backend):
    """An integer label and its one-hot distribution agree under every option."""

    def holds(problem):
        inputs, options = problem
        soft = np.eye(inputs["logits"].shape[-1])[inputs["labels"].astype(np.int64)]
        close(call(backend, inputs | {"labels": soft}, options), inputs, options)

    check(backend, holds)


def test_permutation(backend):
    """Entries in another order lose what they lost."""

    def holds(problem):
        inputs, options = problem
        turned = {n: a if n == "class_weights" else a[::-1].copy() for n, a in inputs.items()}
        got = call(backend, turned, options)
        close(got if got.shape == () else got[::-1], inputs, options)

    check(backend, holds, shapes=SHAPES[1:])


def test_padding(backend):
    """Masked entries of garbage change nothing but mean_over_all's divisor."""

    def holds(problem):
        inputs, options = problem
        width = [(0, 0)] * (inputs["labels"].ndim - 1) + [(0, 2)]
        fill = {"logits": np.nan, "labels": 100, "mask": False, "weights": np.inf}
        padded = {
            n: a if n == "class_weights" else np.pad(a, width + [(0, 0)] * (n == "logits"), constant_values=fill[n])
            for n, a in inputs.items()
        }
        close(call(backend, padded, options), inputs, options)

    check(backend, holds, shapes=SHAPES[1:], reductions=UNPADDED)


def test_compaction(backend):
    """The loss of the masked is the loss of the selected."""
    if backend.library == "jax":
        pytest.skip("each number of selected entries would be compiled")

    def holds(problem):
        inputs, options = problem
        kept = inputs["mask"]
        selected = {n: a if n == "class_weights" else a[kept] for n, a in inputs.items() if n != "mask"}
        close(call(backend, selected, options), inputs, options)

    check(backend, holds, shapes=SHAPES[1:2], reductions=UNPADDED)


def test_shift(backend):
    """A common offset of the logits changes no loss; 2**k added to multiples of 2**-6 below 2**5 rounds nothing."""

    def holds(problem):
        inputs, options = problem
        options = {n: o for n, o in options.items() if n not in ("softcap", "z_loss")}
        x = np.round(np.clip(np.nan_to_num(inputs["logits"], neginf=-30), -30, 30) * 64) / 64
        shifted = call(backend, inputs | {"logits": x + 64.0}, options)
        close(shifted, inputs | {"logits": x}, options)

    check(backend, holds)


def test_label_dtypes(backend):
    """The dtype of the labels changes no bit."""

    def holds(problem):
        inputs, options = problem
        losses = [call(backend, inputs | {"labels": inputs["labels"].astype(d)}, options) for d in LABELS]
        assert all(np.array_equal(losses[0], other, equal_nan=True) for other in losses)

    check(backend, holds)


def test_it_can_fail():
    inputs, options = {"logits": np.array([[0.0, 1.0]]), "labels": np.array([0])}, {"reduction": "mean"}
    got = call(backends.BACKENDS["numpy"], inputs, options)
    close(got, inputs, options)
    with pytest.raises(AssertionError, match="ulps"):
        close(got * np.float32(1 + 1e-4), inputs, options)
