"""Calls that must be refused, as data: what is called with what, the exception, and the words its message owes.

The words are the argument's name, what was given, and what is accepted. tests/test_bad_input.py makes every call on
every backend that has it; docs/scripts/errors.py makes the table of messages.
"""

import functools
import importlib
import math
import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import maskloss as ml
from tests import backends

PACKAGE = Path(ml.__file__).parent
REDUCTIONS = ("none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences")
NAMES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy", "array_api_strict": "array-api-strict"}


class BadCall(NamedTuple):
    name: str
    function: str  # as the documentation writes it
    call: Callable[..., Any]  # of the backend, then the arguments
    arguments: Callable[[backends.Backend], dict[str, Any]]
    changed: tuple[str, ...]  # the arguments that make it a bad call
    exception: type[Exception]
    words: Callable[[backends.Backend], tuple[str, ...]]
    libraries: tuple[str, ...] | None  # None: every one
    reads: bool  # refused for a value, so only where values may be read
    needs: str | None  # a library beside the backend's


NOT_JAX = tuple(name for name in NAMES if name != "jax")  # whose int64 is int32 without x64

CALLS: list[BadCall] = []
POSITIONAL = ("logits", "hidden", "kernel", "labels", "x", "values", "*")


def bad(name, exception, *words, function="cross_entropy", call=None, on=None, reads=False, needs=None, **arguments):
    """Adds one call: the function's good arguments, changed by `arguments`; a function among these makes the value."""
    good = GOOD.get(function.partition("_")[0], GOOD["cross"])
    made = {**good, **arguments}
    CALLS.append(
        BadCall(
            name,
            function,
            call or (lambda backend, *args, **kwargs: getattr(ml, function)(*args, **kwargs)),
            lambda backend: {key: value(backend) if callable(value) else value for key, value in made.items()},
            tuple(arguments),
            exception,
            words[0] if words and callable(words[0]) else lambda backend: words,
            on,
            reads,
            needs,
        )
    )


def make(bad_call, backend):
    """Makes the call; returns what it returns."""
    given = bad_call.arguments(backend)
    by_position = [given.pop(key) for key in POSITIONAL if key in given]
    return bad_call.call(backend, *by_position, **given)


def problems(bad_call, backend):
    """What is wrong with the refusal: a list of reasons, empty where it is as it should be."""
    try:
        result = make(bad_call, backend)
    except Exception as error:
        message = str(error)
        found = [f"does not say {word!r}: {message}" for word in bad_call.words(backend) if word not in message]
        if type(error) is not bad_call.exception:
            found.append(f"raised {type(error).__name__}, not {bad_call.exception.__name__}: {message}")
        origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if PACKAGE not in origin.parents and f"{bad_call.function}() " not in message:  # a signature's own TypeError
            found.append(f"raised in {origin}, not by maskloss: {message}")
        return found
    return [f"returned {result!r}"]


def runs_on(bad_call, backend):
    if bad_call.reads and (backend.shapes_only or backend.accelerator):
        return False
    # A call made for one library names that library's ordinary device.
    ordinary = not backend.shapes_only and backend.device != "device1"
    return bad_call.libraries is None or (backend.library in bad_call.libraries and ordinary)


def given(values, dtype="float32"):
    return lambda backend: backends.asarray(backend, np.asarray(values, dtype))


def foreign(library, values):
    """An array of another library than the backend's."""
    maker = {"numpy": ("numpy", "asarray"), "torch": ("torch", "tensor"), "jax": ("jax.numpy", "asarray")}[library]
    return lambda backend: getattr(importlib.import_module(maker[0]), maker[1])(values)


ROWS = [[0.5, 1.0, -2.0], [0.1, 0.2, 0.3]]
GOOD = {
    "cross": {"logits": given(ROWS), "labels": given([0, 2], "int64")},
    "entropy": {"logits": given(ROWS)},
    "masked": {"x": given(ROWS)},
    "reduce": {"values": given(ROWS)},
    "denominator": {"labels": given([0, 2], "int64")},
}
KERNEL = given([[0.5, 1.0, -2.0], [0.1, 0.2, 0.3], [1.0, 0.0, 2.0], [0.0, 1.0, 0.5]])
GOOD["linear"] = {"hidden": given(ROWS), "kernel": KERNEL, "labels": given([0, 3], "int64")}
SOFT = given([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])

# Shapes.
bad("labels of other entries", ValueError, "labels", "(3,)", "(2,)", labels=given([0, 1, 2], "int64"))
bad("one label for two entries", ValueError, "labels", "()", "(2,)", labels=given(0, "int64"))
bad(
    "an integer one-hot",
    ValueError,
    "labels",
    "(2, 3)",
    "(2,)",
    "floating",
    labels=given([[1, 0, 0], [0, 0, 1]], "int64"),
)
IMAGES = given(np.zeros((2, 3, 4)))
bad("distributions without classes", ValueError, "labels", "axis=1", logits=IMAGES, labels=given(np.zeros((2, 4))))
bad(
    "a class axis forgotten",
    ValueError,
    "labels",
    "(2, 4)",
    "(2, 3)",
    "axis=1",
    logits=IMAGES,
    labels=given(np.zeros((2, 4)), "int64"),
)
bad(
    "another class axis",
    ValueError,
    "labels",
    "(2, 3)",
    "(2, 4)",
    "axis=2",
    logits=IMAGES,
    axis=1,
    labels=given(np.zeros((2, 3)), "int64"),
)
bad(
    "a class axis forgotten, with class weights",
    ValueError,
    "labels",
    "axis=1",
    logits=IMAGES,
    labels=given(np.zeros((2, 4)), "int64"),
    class_weights=given([1.0, 2.0, 3.0]),
)
bad(
    "a class mask along another axis",
    ValueError,
    "class_mask",
    "(3,)",
    "(2, 3, 4)",
    "(3, 1)",
    logits=IMAGES,
    labels=given(np.zeros((2, 4)), "int64"),
    axis=1,
    class_mask=given([True, True, False], "bool"),
)
bad(
    "a class axis forgotten, with distributions",
    ValueError,
    "labels",
    "(2, 4, 3)",
    "(2, 3, 4)",
    "along the last axis",
    logits=IMAGES,
    axis=1,
    labels=given(np.full((2, 4, 3), 1 / 3)),
)
bad(
    "a class axis forgotten, with a mask alone",
    ValueError,
    "mask",
    "(2, 4)",
    "(2, 3)",
    "axis=1",
    function="entropy",
    logits=IMAGES,
    mask=given(np.ones((2, 4)), "bool"),
)
bad("weights in words", TypeError, "weights", "'a'", "array", "a number", weights="a")
bad("a NumPy bool as weights", TypeError, "weights", "True", "(bool)", "number", weights=np.True_)
bad("soft labels of fewer classes", ValueError, "labels", "(2, 2)", "(2, 3)", labels=given([[1.0, 0.0], [0.0, 1.0]]))
bad(
    "floating class indices",
    ValueError,
    "labels",
    "float32",
    "(2,)",
    "(2, 3)",
    "cast",
    "integer",
    labels=given([0.0, 2.0]),
)
bad("flat logits", ValueError, "labels", "(1, 2)", "reshape them to (2,)", labels=given([[0, 2]], "int64"))
bad("a mask of other entries", ValueError, "mask", "(3,)", "(2,)", mask=given([True, True, False], "bool"))
bad("a mask with a class axis", ValueError, "mask", "(2, 3)", "(2,)", mask=given([[True, True, False]] * 2, "bool"))
bad("a mask of more dimensions", ValueError, "mask", "(1, 2)", "(2,)", mask=given([[True, True]], "bool"))
bad("weights of other entries", ValueError, "weights", "(3,)", "(2,)", weights=given([1.0, 1.0, 1.0]))
bad(
    "weights of a sequence each",
    ValueError,
    "weights",
    "(2,)",
    "(2, 3)",
    "(2, 1)",
    logits=given(np.zeros((2, 3, 4))),
    labels=given(np.zeros((2, 3)), "int64"),
    weights=given([1.0, 2.0]),
)
bad("class weights of fewer classes", ValueError, "class_weights", "(2,)", "(3,)", class_weights=given([1.0, 2.0]))
bad("one number as class weights", TypeError, "class_weights", "1.0", "array", class_weights=1.0)
bad("class weights per entry", ValueError, "class_weights", "(2, 3)", "(3,)", class_weights=given(ROWS))
bad("a class mask of entries", ValueError, "class_mask", "(2,)", "(2, 3)", class_mask=given([True, False], "bool"))
bad(
    "logits of no dimension",
    ValueError,
    "logits",
    "()",
    "at least one dimension",
    logits=given(1.0),
    labels=given(0, "int64"),
)
bad("logits of no class", ValueError, "logits", "(2, 0)", "at least one class", logits=given([[], []]))

# Dtypes.
bad("a floating mask", TypeError, "mask", "float32", "bool or integer 0/1", "weights", mask=given([1.0, 0.0]))
bad("an additive mask", TypeError, "mask", "float32", "bool or integer 0/1", "weights", mask=given([0.0, -math.inf]))
bad("a Python float as mask", TypeError, "mask", "bool or integer 0/1", "weights", mask=1.0)
bad("a mask with a 2", ValueError, "mask[1]", "2", "0/1", mask=given([1, 2], "int64"), reads=True)
bad("a mask with a -1", ValueError, "mask[0]", "-1", "0/1", mask=given([-1, 1], "int8"), reads=True)
bad("a complex mask", TypeError, "mask", "complex64", "bool or integer 0/1", mask=given([1.0, 0.0], "complex64"))
bad("bool labels", TypeError, "labels", "bool", "integer", "floating", labels=given([True, False], "bool"))
bad("complex labels", TypeError, "labels", "complex64", "integer", "floating", labels=given([0.0, 1.0], "complex64"))
bad("integer logits", TypeError, "logits", "int32", "floating", logits=given([[1, 2, 3], [4, 5, 6]], "int32"))
bad("bool logits", TypeError, "logits", "bool", "floating", logits=given([[True, False, True]] * 2, "bool"))
bad("complex logits", TypeError, "logits", "complex64", "real floating", logits=given(ROWS, "complex64"))
bad("an integer class mask", TypeError, "class_mask", "int32", "bool", class_mask=given([1, 0, 1], "int32"))
bad("a floating class mask", TypeError, "class_mask", "float32", "bool", class_mask=given([1.0, 0.0, 1.0]))
bad("bool weights", TypeError, "weights", "bool", "real", weights=given([True, False], "bool"))
bad("weights of True", TypeError, "weights", "True", "real", weights=True)
bad("complex weights", TypeError, "weights", "complex64", "real", weights=given([1.0, 0.0], "complex64"))
bad("bool class weights", TypeError, "class_weights", "bool", "real", class_weights=given([True, False, True], "bool"))
bad(
    "complex class weights",
    TypeError,
    "class_weights",
    "complex64",
    "real",
    class_weights=given([1.0] * 3, "complex64"),
)


# Label values.
def bad_label(name, place, value, *words, labels, **arguments):
    """A label that is no class is told with its place, its value and the range."""
    bad(name, ValueError, f"{place} is {value}", *words, labels=labels, reads=True, **arguments)


PAIRS = {"logits": given([ROWS, ROWS]), "labels": given([[0, 7], [9, 2]], "int64")}
bad_label("a label of C", "labels[1]", 3, "[0, 3)", labels=given([0, 3], "int64"))
bad_label("a label of C, validate=True", "labels[1]", 3, "[0, 3)", labels=given([0, 3], "int64"), validate=True)
bad_label("a label of -1", "labels[0]", -1, "[0, 3)", labels=given([-1, 2], "int64"))
bad_label(
    "a label of -100 that nothing ignores",
    "labels[1]",
    -100,
    "[0, 3)",
    "ignore_index",
    labels=given([0, -100], "int64"),
)
bad_label("another value is ignored", "labels[0]", -1, "[0, 3)", labels=given([-1, -100], "int64"), ignore_index=-100)
bad_label("a label of 2**40", "labels[1]", 2**40, "[0, 3)", labels=given([0, 2**40], "int64"), on=NOT_JAX)
bad_label(
    "NumPy's label of 2**40", "labels[1]", 2**40, "[0, 3)", labels=foreign("numpy", np.array([0, 2**40])), on=("jax",)
)
bad_label("a uint64 label of 2**63", "labels[1]", 2**63, "[0, 3)", labels=given([0, 2**63], "uint64"), on=NOT_JAX)
bad_label("a uint8 label of 255", "labels[0]", 255, "[0, 3)", labels=given([255, 0], "uint8"))
bad_label("the first wrong label of several", "labels[0, 1]", 7, "[0, 3)", **PAIRS)
bad_label(
    "the first wrong label that is kept",
    "labels[1, 0]",
    9,
    "[0, 3)",
    mask=given([[True, False], [True, True]], "bool"),
    **PAIRS,
)
bad_label("the only label is wrong", "labels", 5, "[0, 3)", logits=given(ROWS[0]), labels=given(5, "int64"))
bad_label("a Python number as label", "labels", 5, "[0, 3)", logits=given(ROWS[0]), labels=5)
bad_label(
    "a label of an excluded class",
    "labels[1]",
    2,
    "class_mask",
    labels=given([0, 2], "int64"),
    class_mask=given([True, True, False], "bool"),
)
bad_label(
    "label_log_probs of a label of C",
    "labels[1]",
    3,
    "[0, 3)",
    function="label_log_probs",
    labels=given([0, 3], "int64"),
)


# Libraries and devices.
def torch():
    return importlib.import_module("torch")


def both(argument, library):
    """The words of a refusal that names both libraries."""
    return lambda backend: (argument, NAMES[library], NAMES[backend.library])


OTHERS = (
    ("labels", np.array([0, 2])),
    ("mask", np.array([True, False])),
    ("weights", np.array([1.0, 2.0], "float32")),
    ("class_weights", np.array([1.0, 2.0, 3.0], "float32")),
    ("class_mask", np.array([True, True, False])),
    ("denominator", np.array(2.0, "float32")),
)
for argument, values in OTHERS:
    for library in ("numpy", "torch", "jax"):
        # NumPy's arrays are converted for JAX.
        others = tuple(n for n in NAMES if n != library and (library, n) != ("numpy", "jax"))
        bad(
            f"{NAMES[library]} {argument}",
            TypeError,
            both(argument, library),
            on=others,
            needs=library,
            **{argument: foreign(library, values)},
        )
bad(
    "JAX soft labels",
    TypeError,
    both("labels", "jax"),
    on=("numpy", "torch", "array_api_strict"),
    needs="jax",
    labels=foreign("jax", [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]),
)
for argument, values, dtype in (
    ("labels", [0, 2], "int64"),
    ("mask", [True, False], "bool"),
    ("weights", [1.0, 2.0], "float32"),
):
    bad(
        f"{argument} on PyTorch's meta device",
        ValueError,
        lambda backend, argument=argument: (argument, "meta", backend.device),
        on=("torch",),
        **{argument: lambda _, values=values, dtype=dtype: given(values, dtype)(backends.BACKENDS["torch-meta"])},
    )
    bad(
        f"{argument} on array-api-strict's second device",
        ValueError,
        argument,
        "device1",
        "CPU_DEVICE",
        on=("array_api_strict",),
        **{argument: lambda _, values=values, dtype=dtype: given(values, dtype)(backends.BACKENDS["strict-device"])},
    )


# What is no plain array.
class DerivedMasked(np.ma.MaskedArray):
    pass


class DerivedMatrix(np.matrix):
    pass


for argument, values in (("logits", ROWS), ("labels", [0, 2]), ("weights", [1.0, 2.0])):
    bad(
        f"numpy.ma {argument}",
        TypeError,
        argument,
        "MaskedArray",
        "mask=",
        on=("numpy",),
        **{argument: lambda _, values=values: np.ma.masked_array(values)},
    )
    bad(
        f"object {argument}",
        TypeError,
        argument,
        "object",
        "dtype",
        on=("numpy",),
        **{argument: lambda _, values=values: np.asarray(values, object)},
    )
bad(
    "a numpy.matrix as logits",
    TypeError,
    "logits",
    "matrix",
    "plain array",
    on=("numpy",),
    logits=lambda _: np.asmatrix(ROWS),
)
bad(
    "a numpy.matrix as class mask",
    TypeError,
    "class_mask",
    "matrix",
    "plain array",
    on=("numpy",),
    class_mask=lambda _: np.asmatrix([[True, True, True]]),
)
for argument, values in (("logits", ROWS), ("weights", [1.0, 2.0])):
    bad(
        f"a class derived from numpy.ma as {argument}",
        TypeError,
        argument,
        "MaskedArray",
        "mask=",
        on=("numpy",),
        **{argument: lambda _, values=values: np.ma.masked_array(values).view(DerivedMasked)},
    )
bad(
    "a class derived from numpy.matrix",
    TypeError,
    "logits",
    "matrix",
    "plain array",
    on=("numpy",),
    logits=lambda _: np.asmatrix(ROWS).view(DerivedMatrix),
)
for argument in ("weights", "mask", "denominator"):
    bad(
        f"numpy.ma.masked {argument}",
        TypeError,
        argument,
        "MaskedArray",
        "mask=",
        on=("numpy",),
        **{argument: np.ma.masked},
    )
bad(
    "NumPy strings as labels",
    TypeError,
    "labels",
    "dtype str and",
    "integer",
    "floating",
    on=("numpy",),
    labels=lambda _: np.asarray(["a", "b"]),
)
bad(
    "NumPy dates as weights",
    TypeError,
    "weights",
    "datetime64",
    "real",
    on=("numpy",),
    weights=lambda _: np.asarray(["2020-01-01"] * 2, "datetime64[D]"),
)
bad(
    "sparse logits",
    TypeError,
    "logits",
    "sparse",
    "dense",
    on=("torch",),
    logits=lambda _: torch().tensor(ROWS).to_sparse(),
)
bad(
    "a sparse mask",
    TypeError,
    "mask",
    "sparse",
    "dense",
    on=("torch",),
    mask=lambda _: torch().tensor([True, False]).to_sparse(),
)
bad(
    "nested logits",
    TypeError,
    "logits",
    "nested",
    "dense",
    on=("torch",),
    logits=lambda _: torch().nested.nested_tensor([torch().tensor(row) for row in ROWS], layout=torch().jagged),
)
for argument, values in (("logits", ROWS), ("labels", [[0, 2], [1, 0]]), ("mask", [[True, False], [True, True]])):
    bad(
        f"strided nested {argument}",
        TypeError,
        argument,
        "nested",
        "dense",
        on=("torch",),
        **{argument: lambda _, values=values: torch().nested.nested_tensor([torch().tensor(row) for row in values])},
    )
bad(
    "quantized logits",
    TypeError,
    "logits",
    "quint8",
    "floating",
    on=("torch",),
    logits=lambda _: torch().quantize_per_tensor(torch().tensor(ROWS), 0.1, 0, torch().quint8),
)
bad("a list of logits", TypeError, "logits", "list", "array", logits=ROWS)
bad("a list of labels", TypeError, "labels", "list", "array", labels=[0, 2])
bad("a string as mask", TypeError, "mask", "'pad'", "array", mask="pad")
bad("a list as mask", TypeError, "mask", "list", "array", mask=[True, False])
bad("a tuple of class weights", TypeError, "class_weights", "tuple", "array", class_weights=(1.0, 2.0, 3.0))
bad("logits of None", TypeError, "logits", "None", "array", logits=None)
bad("a Python number as logits", TypeError, "logits", "1.5", "array", logits=1.5)
bad("labels of None", TypeError, "labels", "None", "array", labels=None)
bad("a string as labels", TypeError, "labels", "'cat'", "array", labels="cat")

# Axes.
bad("an axis out of range", ValueError, "axis", "2", "[-2, 2)", axis=2)
bad("a negative axis out of range", ValueError, "axis", "-3", "[-2, 2)", axis=-3)
bad("an axis of 1.5", TypeError, "axis", "1.5", "integer", axis=1.5)
bad("an axis in words", TypeError, "axis", "'classes'", "integer", axis="classes")
bad("two class axes", TypeError, "axis", "(0, 1)", "integer", axis=(0, 1))
bad("an axis of True", ValueError, "axis", "True", "[-2, 2)", axis=True)
bad("no axis", TypeError, "axis", "None", "integer", axis=None)

# Options.
bad("an unknown reduction", ValueError, "reduction", "'average'", *map(repr, REDUCTIONS), reduction="average")
bad("no reduction", TypeError, "reduction", "None", *map(repr, REDUCTIONS), reduction=None)
bad("a denominator of a sum", ValueError, "denominator", "4", "'sum'", "divisor", reduction="sum", denominator=4)
bad(
    "a denominator of no reduction",
    ValueError,
    "denominator",
    "4",
    "'none'",
    "divisor",
    reduction="none",
    denominator=4,
)
bad("two denominators", ValueError, "denominator", "(2,)", "number", denominator=given([1.0, 2.0]))
bad("a denominator of NaN", ValueError, "denominator", "nan", "finite", denominator=math.nan)
bad("an infinite denominator", ValueError, "denominator", "inf", "finite", denominator=math.inf)
bad("a denominator of 10**400", ValueError, "denominator", "1000", "range", denominator=10**400)
for argument in ("denominator", "softcap", "z_loss", "weights"):
    bad(f"{argument} beyond float32", ValueError, argument, "1e+39", "float32", "3.4e+38", **{argument: 1e39})
bad("weights below float32", ValueError, "weights", "1e-50", "float32", "1.18e-38", weights=1e-50)
bad("weights of NaN", ValueError, "weights", "nan", "finite", weights=math.nan)
bad("a bool denominator", TypeError, "denominator", "True", "number", denominator=True)
bad("a bool array as denominator", TypeError, "denominator", "bool", "real", denominator=given(True, "bool"))
bad("a denominator in words", TypeError, "denominator", "'4'", "array", denominator="4")
bad(
    "ignore_index beside distributions",
    ValueError,
    "ignore_index",
    "-100",
    "distribution",
    "mask",
    labels=SOFT,
    ignore_index=-100,
)
bad("ignore_index of 1.5", TypeError, "ignore_index", "1.5", "int", ignore_index=1.5)
bad("ignore_index of True", TypeError, "ignore_index", "True", "int", ignore_index=True)
bad("two ignored values", TypeError, "ignore_index", "(-1, -100)", "int", ignore_index=(-1, -100))
bad("an ignore_index array", TypeError, "ignore_index", "int32", "int", ignore_index=given([0, 1], "int32"))
for smoothing in (-0.1, 1.1, math.nan, math.inf):
    bad(
        f"label smoothing of {smoothing}",
        ValueError,
        "label_smoothing",
        str(smoothing),
        "[0, 1]",
        label_smoothing=smoothing,
    )
bad("an array as label smoothing", TypeError, "label_smoothing", "()", "number", label_smoothing=given(0.1))
bad("label smoothing in words", TypeError, "label_smoothing", "'0.1'", "[0, 1]", label_smoothing="0.1")
bad("label smoothing of True", TypeError, "label_smoothing", "True", "[0, 1]", label_smoothing=True)
for cap in (0.0, -30.0, math.nan, math.inf):
    bad(f"a softcap of {cap}", ValueError, "softcap", str(cap), "positive", "finite", softcap=cap)
bad("a softcap of True", TypeError, "softcap", "True", "number", softcap=True)
for z_loss in (math.nan, math.inf, -1e-4):
    bad(f"a z_loss of {z_loss}", ValueError, "z_loss", str(z_loss), "finite", z_loss=z_loss)
bad("a z_loss in words", TypeError, "z_loss", "'1e-4'", "number", z_loss="1e-4")
bad("with_stats of 1", TypeError, "with_stats", "1", "True", "False", with_stats=1)
bad("with_stats in words", ValueError, "with_stats", "'yes'", "True", "False", with_stats="yes")
bad("validate of maybe", ValueError, "validate", "'maybe'", "'auto'", "True", "False", validate="maybe")
bad("validate of None", TypeError, "validate", "None", "'auto'", "True", "False", validate=None)
bad("validate of 1", TypeError, "validate", "1", "'auto'", "True", "False", validate=1)
bad(
    "an unknown implementation",
    ValueError,
    "implementation",
    "'fast'",
    "'analytic'",
    "'autodiff'",
    implementation="fast",
)
bad(
    "Triton's kernels without PyTorch",
    ValueError,
    "implementation",
    "'triton'",
    "only ['analytic', 'autodiff'] can run: its kernels take PyTorch tensors",
    implementation="triton",
    on=("numpy", "jax"),
)
bad("an implementation of True", TypeError, "implementation", "True", "'analytic'", "'autodiff'", implementation=True)
bad("an option by position", TypeError, "positional", **{"*": given([True, False], "bool")})
bad("an unknown option", TypeError, "masks", "keyword", masks=given([True, False], "bool"))


# Tracers.
def traced(backend, logits, labels, **options):
    """cross_entropy where labels have no values to read: jax.jit, torch.func.vmap."""
    call = functools.partial(ml.cross_entropy, **options)
    if backend.library == "jax":
        import jax

        return jax.jit(call)(logits, labels)
    return torch().func.vmap(call)(logits, labels)


bad(
    "validate=True under a tracer",
    ValueError,
    "validate",
    "True",
    "tracer",
    "'auto'",
    call=traced,
    function="jit or vmap of cross_entropy",
    on=("torch", "jax"),
    validate=True,
)


# value_and_grad.
def graded(loss=None, **how):
    return lambda backend, *args, **kwargs: ml.value_and_grad(loss or ml.cross_entropy, **how)(*args, **kwargs)


def squares(logits, labels):
    return (logits * logits).sum()


NO_AUTODIFF = ("numpy", "array_api_strict", "cupy")
bad(
    "a foreign function",
    TypeError,
    "loss_function",
    "squares",
    "cross_entropy",
    call=graded(squares),
    function="value_and_grad(squares)",
    on=NO_AUTODIFF,
)
bad("no function", TypeError, "loss_function", "'mean'", call=graded("mean"), function="value_and_grad('mean')")
bad(
    "the gradient of many losses",
    ValueError,
    "reduction",
    "'none'",
    call=graded(),
    function="value_and_grad(cross_entropy)",
    reduction="none",
    on=NO_AUTODIFF,
)
bad(
    "the gradient of an array",
    ValueError,
    "loss_function",
    "(2,)",
    "0-d",
    call=graded(),
    function="value_and_grad(cross_entropy)",
    reduction="none",
    on=("torch", "jax"),
)
bad(
    "argnums out of range",
    ValueError,
    "argnums",
    "5",
    call=graded(argnums=5),
    function="value_and_grad(cross_entropy, argnums=5)",
)
bad(
    "argnums of 1.5",
    TypeError,
    "argnums",
    "1.5",
    call=graded(argnums=1.5),
    function="value_and_grad(cross_entropy, argnums=1.5)",
)
bad(
    "a gradient of integer labels",
    TypeError,
    "argnums is 1",
    "int32",
    "floating",
    call=graded(argnums=1),
    function="value_and_grad(cross_entropy, argnums=1)",
    labels=given([0, 2], "int32"),
)
bad(
    "a gradient of the mask",
    TypeError,
    "argnums is 'mask'",
    "bool",
    "floating",
    call=graded(argnums="mask"),
    function="value_and_grad(cross_entropy, argnums='mask')",
    mask=given([True, False], "bool"),
)
bad(
    "a gradient of what is not given",
    ValueError,
    "argnums",
    "'weights'",
    call=graded(argnums="weights"),
    function="value_and_grad(cross_entropy, argnums='weights')",
)
bad(
    "a gradient of no argument",
    ValueError,
    "argnums",
    "'nothing'",
    call=graded(argnums="nothing"),
    function="value_and_grad(cross_entropy, argnums='nothing')",
)
bad(
    "argnums that repeat",
    ValueError,
    "argnums",
    "(0, 0)",
    call=graded(argnums=(0, 0)),
    function="value_and_grad(cross_entropy, argnums=(0, 0))",
)


def graded_in_inference_mode(backend, *args):
    with torch().inference_mode():
        return ml.value_and_grad(ml.cross_entropy)(*args)


bad(
    "a gradient in inference mode",
    ValueError,
    "inference_mode",
    "no_grad",
    call=graded_in_inference_mode,
    function="value_and_grad(cross_entropy) in inference_mode",
    on=("torch",),
)
bad(
    "statistics multiplied",
    TypeError,
    "LossStats",
    "mean",
    "_replace",
    call=lambda backend, *args: ml.cross_entropy(*args, with_stats=True)[1] * 2,
    function="cross_entropy(…, with_stats=True)[1] * 2",
)
for text, add in (
    ("stats + (1, 2)", operator.add),
    ("(1, 2) + stats", lambda stats, other: operator.add(other, stats)),
):
    bad(
        f"a tuple and statistics: {text}",
        TypeError,
        "LossStats",
        "(1, 2)",
        call=lambda backend, *args, add=add: add(ml.cross_entropy(*args, with_stats=True)[1], (1, 2)),
        function=text.replace("stats", "cross_entropy(…, with_stats=True)[1]"),
    )
bad(
    "has_aux of 1",
    TypeError,
    "has_aux",
    "1",
    "True",
    "False",
    call=graded(has_aux=1),
    function="value_and_grad(cross_entropy, has_aux=1)",
)
bad(
    "has_aux of a loss alone",
    ValueError,
    "has_aux",
    call=graded(has_aux=True),
    function="value_and_grad(cross_entropy, has_aux=True)",
)
bad(
    "a pair without has_aux",
    ValueError,
    "has_aux",
    call=graded(),
    function="value_and_grad(cross_entropy)",
    with_stats=True,
)

# The other functions.
bad(
    "label_log_probs with a floating mask",
    TypeError,
    "mask",
    "float32",
    "weights",
    function="label_log_probs",
    mask=given([1.0, 0.0]),
)
bad(
    "label_log_probs with a softcap of 0",
    ValueError,
    "softcap",
    "0",
    "positive",
    function="label_log_probs",
    softcap=0.0,
)
bad(
    "entropy of integers",
    TypeError,
    "logits",
    "int32",
    "floating",
    function="entropy",
    logits=given([[1, 2], [3, 4]], "int32"),
)
bad("entropy with a floating mask", TypeError, "mask", "float32", "weights", function="entropy", mask=given([1.0, 0.0]))
bad("entropy along no axis", ValueError, "axis", "4", "[-2, 2)", function="entropy", axis=4)
for function in (
    "masked_sum",
    "masked_mean",
    "masked_var",
    "masked_std",
    "masked_max",
    "masked_min",
    "masked_logsumexp",
    "masked_softmax",
    "masked_log_softmax",
):
    bad(
        f"{function} of integers",
        TypeError,
        "x",
        "int32",
        "floating",
        function=function,
        x=given([[1, 2], [3, 4]], "int32"),
    )
    bad(f"{function} of a list", TypeError, "x", "list", "array", function=function, x=ROWS)
    bad(
        f"{function} with a floating mask",
        TypeError,
        "mask",
        "float32",
        "bool or integer 0/1",
        function=function,
        mask=given(ROWS),
    )
    bad(
        f"{function} with a mask of another shape",
        ValueError,
        "mask",
        "(2,)",
        "(2, 3)",
        function=function,
        mask=given([True, False], "bool"),
    )
    bad(f"{function} along no axis", ValueError, "axis", "2", "[-2, 2)", function=function, axis=2)
    bad(f"{function} along an axis of 0.5", TypeError, "axis", "0.5", "integer", function=function, axis=0.5)
bad("keepdims of 1", TypeError, "keepdims", "1", "True", "False", function="masked_mean", keepdims=1)
bad("keepdims in words", ValueError, "keepdims", "'yes'", "True", "False", function="masked_mean", keepdims="yes")
bad("a softmax along two axes", TypeError, "axis", "(0, 1)", "integer", function="masked_softmax", axis=(0, 1))
bad("an axis twice", ValueError, "axis", "(0, 0)", function="masked_mean", axis=(0, 0))
bad("an axis twice, once from the end", ValueError, "axis", "(1, -1)", function="masked_mean", axis=(1, -1))
bad("one axis of two out of range", ValueError, "axis", "5", "[-2, 2)", function="masked_mean", axis=(0, 5))
bad(
    "weights of another shape than x",
    ValueError,
    "weights",
    "(2,)",
    "(2, 3)",
    function="masked_mean",
    weights=given([1.0, 2.0]),
)
bad("a correction of NaN", ValueError, "correction", "nan", "not negative", function="masked_var", correction=math.nan)
bad("a correction in words", TypeError, "correction", "'1'", "number", function="masked_std", correction="1")
bad("what is empty beyond float32", ValueError, "empty", "1e+39", "float32", function="masked_mean", empty=1e39)
bad("label smoothing below float32", ValueError, "label_smoothing", "1e-46", "float32", label_smoothing=1e-46)
for dtype, empty in (("float16", 1e5), ("bfloat16", 3.4e38)):
    bad(
        f"what is empty beyond {dtype}",
        ValueError,
        "empty",
        str(empty),
        dtype,
        function="masked_max",
        x=given(ROWS, dtype),
        empty=empty,
        on=("numpy", "torch", "jax"),
    )
bad("what is empty in words", TypeError, "empty", "'zero'", "number", function="masked_mean", empty="zero")
# denominator, whose labels stand for the logits.
divides = functools.partial(bad, function="denominator")
divides("denominator of a number", TypeError, "labels", "3 (int)", "array", labels=3)
divides(
    "denominator of a class that is none",
    ValueError,
    "labels[1]",
    "-1",
    "ignore_index",
    reads=True,
    labels=given([0, -1], "int64"),
)
divides("denominator beyond the classes", ValueError, "labels[1]", "2", "[0, 2)", reads=True, classes=2)
divides(
    "denominator of other classes", ValueError, "classes", "4", "3", classes=4, class_weights=given([1.0, 2.0, 3.0])
)
divides("denominator of no class", ValueError, "classes", "0", "at least one", classes=0)
divides("denominator of classes in words", TypeError, "classes", "'a'", "int", classes="a")
divides("denominator of any class", ValueError, "classes", "None", "class_mask", "number", class_mask=True)
divides("denominator of a floating mask", TypeError, "mask", "float32", "weights", mask=given([0.5, 1.0]))
divides("denominator of other entries", ValueError, "mask", "(3,)", "(2,)", mask=given([1, 1, 1], "int64"))
divides("denominator of an axis", ValueError, "axis", "2", "2 dimensions", axis=2)
divides("denominator of another mean", ValueError, "reduction", "'avg'", "'mean'", reduction="avg")

bad("reduce of integers", TypeError, "values", "int32", "floating", function="reduce", values=given([1, 2], "int32"))
bad(
    "reduce with a mask of another shape",
    ValueError,
    "mask",
    "(2,)",
    "(2, 3)",
    function="reduce",
    mask=given([True, False], "bool"),
)
bad("reduce with a floating mask", TypeError, "mask", "float32", "weights", function="reduce", mask=given(ROWS))
bad(
    "reduce with an unknown reduction",
    ValueError,
    "reduction",
    "'avg'",
    *map(repr, REDUCTIONS),
    function="reduce",
    reduction="avg",
)
bad(
    "reduce with a denominator of a sum",
    ValueError,
    "denominator",
    "3",
    "'sum'",
    function="reduce",
    reduction="sum",
    denominator=3,
)

# Hidden states and their kernel.
linear = functools.partial(bad, function="linear_cross_entropy")
linear("a kernel of other features", ValueError, "kernel", "(4, 2)", "(classes, 3)", kernel=given([[0.5, 1.0]] * 4))
linear(
    "a transposed kernel",
    ValueError,
    "kernel",
    "(3, 4)",
    "(classes, 3)",
    "kernel_layout='dv'",
    "transpose",
    kernel=given([[0.5] * 4] * 3),
)
linear(
    "a kernel with a row for each class as 'dv'",
    ValueError,
    "kernel",
    "(4, 3)",
    "(3, classes)",
    "kernel_layout='vd'",
    kernel_layout="dv",
)
linear("an unknown layout of the kernel", ValueError, "kernel_layout", "'nk'", "'vd'", "'dv'", kernel_layout="nk")
linear("a kernel without classes", ValueError, "kernel", "(0, 3)", "(classes, 3)", kernel=given(np.zeros((0, 3))))
linear("an integer kernel", TypeError, "kernel", "int32", "floating", kernel=given([[1, 0, 2]] * 4, "int32"))
linear("a kernel that is a list", TypeError, "kernel", "list", "array", kernel=[[0.5, 1.0, -2.0]] * 4)
linear("a bias of other classes", ValueError, "bias", "(3,)", "(4,)", bias=given([0.5] * 3))
linear("an integer bias", TypeError, "bias", "int32", "floating", bias=given([1] * 4, "int32"))
linear("hidden states of no axis", ValueError, "hidden", "()", "features", hidden=given(0.5))
linear("hidden states of integers", TypeError, "hidden", "int32", "floating", hidden=given([[1, 0, 2]] * 2, "int32"))
linear("chunks of no rows", ValueError, "chunk_size", "0", "positive", chunk_size=0)
linear("chunks of half rows", TypeError, "chunk_size", "0.5", "positive int", chunk_size=0.5)
linear("labels of other entries than hidden's", ValueError, "labels", "(3,)", "(2,)", labels=given([0, 1, 2], "int64"))
linear("a label beyond the kernel", ValueError, "labels[1]", "4", "[0, 4)", reads=True, labels=given([0, 4], "int64"))
linear("a mask of other entries than hidden's", ValueError, "mask", "(3,)", "hidden", mask=given([True] * 3, "bool"))
bad(
    "chunks of no log-probabilities",
    ValueError,
    "chunk_size",
    "-1",
    "positive",
    function="linear_label_log_probs",
    chunk_size=-1,
)
