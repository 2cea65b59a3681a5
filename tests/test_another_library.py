"""A library that nobody here has heard of: a row of data, and it runs by the standard alone."""

import importlib.util
import sys

import numpy as np
import pytest

import maskloss as ml
from maskloss import _arrays, _capabilities


@pytest.fixture
def toy(backend, monkeypatch):
    """array-api-strict under another name, whose arrays are no longer its own."""
    if backend.name != "numpy":
        pytest.skip("once, beside NumPy")
    spec = importlib.util.find_spec("array_api_strict")
    if spec is None:
        pytest.skip("array-api-strict is not installed")
    renamed = importlib.util.spec_from_file_location(
        "toy", spec.origin, submodule_search_locations=spec.submodule_search_locations
    )
    module = importlib.util.module_from_spec(renamed)
    monkeypatch.setitem(sys.modules, "toy", module)
    renamed.loader.exec_module(module)
    with pytest.raises(TypeError, match="it must be an array of NumPy, "):
        ml.entropy(module.asarray([0.0, 1.0]))
    namespace = _arrays.Namespace("toy", module)
    row = (lambda x: type(x).__module__.startswith("toy."), lambda: namespace)
    monkeypatch.setattr(_arrays, "KINDS", [*_arrays.KINDS, row])
    monkeypatch.setitem(_capabilities.LIBRARIES, "toy", "Toy")
    yield module
    for kind in [kind for kind in _arrays._namespaces if kind.__module__.startswith("toy.")]:
        del _arrays._namespaces[kind]
    for name in [name for name in sys.modules if name.startswith("toy.")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": True, "reduction": "sum"},
        {"weights": True, "class_weights": True, "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0},
        {"class_mask": True, "reduction": "mean_over_sequences"},
    ],
)
def test_the_standard_path(toy, options):
    rng = np.random.default_rng(0)
    arrays = {
        "mask": np.arange(6).reshape(2, 3) != 4,
        "weights": rng.random((2, 3)),
        "class_weights": rng.random(5),
        "class_mask": np.asarray([True, True, False, True, True]),
    }
    options = {name: arrays[name] if value is True else value for name, value in options.items()}
    x, y, h, k = rng.normal(size=(2, 3, 5)), rng.choice([0, 1, 3, 4], (2, 3)), rng.normal(size=(2, 3, 4)), None
    k = rng.normal(size=(5, 4))

    def all_of_them(asarray):
        given = {name: asarray(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
        arguments = [asarray(a) for a in (x, y, h, k)]
        results = [
            *ml.value_and_grad(ml.cross_entropy)(*arguments[:2], **given),
            *ml.value_and_grad(ml.linear_cross_entropy, (0, 1))(arguments[2], *arguments[3:], arguments[1], **given)[1],
            *ml.cross_entropy(*arguments[:2], **given, with_stats=True)[1],
            ml.linear_entropy(arguments[2], arguments[3]),
            ml.masked_std(arguments[0], axis=(0, 2)),
            ml.masked_softmax(arguments[0]),
        ]
        return results

    for found, expected in zip(all_of_them(toy.asarray), all_of_them(np.asarray), strict=True):
        assert type(found).__module__.startswith("toy.")
        np.testing.assert_allclose(np.from_dlpack(found), expected, rtol=1e-12, atol=1e-15)


def test_what_it_cannot_be_read_for_is_nan(toy):
    """Nothing tells whether values may be looked at: a label that is no class is NaN, and refused where it is asked."""
    x, y = toy.zeros((2, 3)), toy.asarray([1, 7])
    assert np.isnan(float(ml.cross_entropy(x, y)))
    with pytest.raises(ValueError, match=r"labels\[1\] is 7"):
        ml.cross_entropy(x, y, validate=True)
    with pytest.raises(ValueError, match="implementation is 'triton'"):
        ml.cross_entropy(x, y, implementation="triton")
