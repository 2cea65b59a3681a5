"""reproducible=True: its exponentials and logarithms, what they may depend on, and what it refuses."""

import functools
import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest

import maskloss as ml
from maskloss._arrays import namespace_of
from maskloss._math import exact
from tests import backends

mp = mpmath.MPContext()
mp.dps = 40
N, C = 24, 300
RNG = np.random.default_rng(7)
X = (RNG.normal(size=(N, C)) * 3).astype(np.float32)
Y = RNG.integers(0, C, N)
WEIGHTS = RNG.random(N, dtype=np.float32)
CLASS_WEIGHTS = RNG.random(C, dtype=np.float32)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 20.0, "reduction": "none"}
loss = functools.partial(ml.cross_entropy, reproducible=True)


def bits(x):
    x = np.asarray(x)
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


def edges():
    """Differences of logits: 0, subnormal numbers, each power of two and its neighbours, and beyond all that counts."""
    powers = 2.0 ** np.arange(-30, 8)
    beside = [np.nextafter(np.float32(p), np.float32(q)) for p in powers for q in (0, 1e9)]
    given = [
        0.0,
        -0.0,
        1e-40,
        2.0**-24,
        2.0**-25,
        40.0,
        87.3,
        87.4,
        88.0,
        103.9,
        104.0,
        1e30,
        math.inf,
        *powers,
        *beside,
    ]
    # Ties between two exponents.
    halves = (np.arange(128) + 0.5) * math.log(2.0)
    return -np.concatenate([np.asarray(given, np.float64), halves])


def arguments(backend):
    """Few where each is a call of a tracer's; ten million with NumPy and torch (`nox -s identity`)."""
    count = 10_000_000 if identity_is_whole() else 100_000
    drawn = np.random.default_rng(11).exponential(12.0, count).astype(np.float32)
    return np.concatenate([edges(), -drawn.astype(np.float64)])


def identity_is_whole():
    from tests.conformance.test_identity import ALL

    return ALL


def in_double(backend, function, *arrays):
    """function(xp, *arrays) of float64 or int64, eagerly and, where the library has a compiler, by it."""
    with backends.settings(backend):
        if backend.library == "jax":
            import jax

            with jax.enable_x64(True):
                given = [jax.numpy.asarray(a) for a in arrays]
                xp = exact.order_free(namespace_of(given[0]))
                for run in (functools.partial(function, xp), jax.jit(functools.partial(function, xp))):
                    yield np.asarray(run(*given))
            return
        given = [backends.asarray(backend, a) for a in arrays]
        xp = exact.order_free(namespace_of(given[0]))
        yield backends.to_numpy(backend, function(xp, *given))
        if backend.library == "torch" and identity_is_whole():
            import torch

            compiled = torch.compile(functools.partial(function, xp))
            yield backends.to_numpy(backend, compiled(*given))


def asked_here(backend):
    """One backend of a library, where not all are asked."""
    backends.holds_values(backend)
    if not identity_is_whole() and backend.name not in ("numpy", "strict", "torch", "jax-x32", "torch-cuda", "cupy"):
        pytest.skip("asked by `nox -s identity`")


def units(xp, d):
    return exact.in_units(exact.exponentials(d, exact.IN_UNITS, xp=xp), xp=xp)


def test_exponentials_are_the_same_integers(backend):
    asked_here(backend)
    d = arguments(backend)
    xp = exact.order_free(namespace_of(d))
    want = units(xp, d)
    e, k = exact.exponentials_into(d.copy(), exact.IN_UNITS, np.empty_like(d), np.empty_like(d), xp=xp)
    assert np.array_equal(np.rint(e * k).astype(np.int64), want)
    for got in in_double(backend, units, d):
        assert np.array_equal(got, want)


def totals():
    """Sums of exponentials: the least, powers of two and their neighbours, and any between."""
    rng = np.random.default_rng(13)
    small = exact.ONE + np.concatenate([np.arange(64), 10.0 ** rng.uniform(1, 12, 5000)])
    powers = exact.ONE * 2.0 ** np.concatenate([np.arange(0, 20.25, 0.5), rng.uniform(0, 20, 5000)])
    whole = np.concatenate([small, powers]).astype(np.int64)
    return np.concatenate([whole, whole + 1])


def test_logarithms_are_the_same_numbers(backend):
    asked_here(backend)
    want = exact.log_of_units(totals(), xp=namespace_of(X))
    for got in in_double(backend, lambda xp, total: exact.log_of_units(total, xp=xp), totals()):
        assert np.array_equal(bits(got), bits(want))


@pytest.mark.of_backend("numpy")
def test_exponentials_are_within_their_bound():
    d = np.concatenate([edges(), -np.random.default_rng(3).exponential(12.0, 4000)])
    d = d[d > -87.0]
    e = exact.exponentials(d, exact.AS_NUMBERS, xp=namespace_of(d)) / exact.of_zero(exact.AS_NUMBERS)
    worst = max(abs(mp.mpf(float(a)) / mp.exp(mp.mpf(float(b))) - 1) for a, b in zip(e, d, strict=True))
    # Relative to exp(0), whose own error it shares: twice that of q^8.
    assert worst < 2.0**-29.5


@pytest.mark.of_backend("numpy")
def test_logarithms_are_within_their_bound():
    given = totals()[::7]
    found = exact.log_of_units(given, xp=namespace_of(X))
    pairs = zip(found, given, strict=True)
    assert max(abs(mp.mpf(float(a)) - mp.log(mp.mpf(int(b)) / exact.ONE)) for a, b in pairs) < 2.0**-43


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize("classes", [2, 50, 1000])
def test_a_loss_that_is_not_near_0_is_within_053_ulps(classes):
    rng = np.random.default_rng(classes)
    x = (rng.normal(size=(200, classes)) * rng.choice([0.3, 2.0, 8.0], (200, 1))).astype(np.float32)
    y = rng.integers(0, classes, 200)
    found = loss(x, y, reduction="none")
    for row, label, value in zip(x, y, found, strict=True):
        given = [mp.mpf(float(v)) for v in row]
        truth = mp.log(mp.fsum(mp.exp(v - given[label]) for v in given))
        if truth > 0.25:
            assert abs(mp.mpf(float(value)) - truth) < 0.53 * float(np.spacing(np.float32(truth)))
        else:  # by the units of the sum, of which each class may lack half, and by the exponentials' own error
            assert abs(mp.mpf(float(value)) - truth) < classes * 2.0**-43 + 0.53 * float(np.spacing(np.float32(truth)))


def asked(backend, x, y, **options):
    """Values and gradients of a loss on a backend, in NumPy."""
    given = {n: backends.asarray(backend, a) if isinstance(a, np.ndarray) else a for n, a in options.items()}
    with backends.settings(backend):
        x, y = backends.asarray(backend, x), backends.asarray(backend, y)
        if backend.library == "torch":
            x.requires_grad_()
            value = loss(x, y, **given)
            value.sum().backward()
            return backends.to_numpy(backend, value), backends.to_numpy(backend, x.grad)
        if backend.library == "jax":
            import jax

            value, back = jax.vjp(lambda x: loss(x, y, **given), x)
            return np.asarray(value), np.asarray(back(jax.numpy.ones_like(value))[0])
        _, gradient = ml.value_and_grad(loss)(x, y, **{**given, "reduction": "sum"})
        return backends.to_numpy(backend, loss(x, y, **given)), backends.to_numpy(backend, gradient)


# JAX' golden bits say as much; eagerly, each operation is compiled.
ALIKE = ("numpy", "torch", "jax") if identity_is_whole() else ("numpy", "torch")


@pytest.mark.parametrize(
    "options", [{}, {"weights": WEIGHTS, "class_weights": CLASS_WEIGHTS}], ids=["plain", "weighed"]
)
def test_the_order_of_entries_and_classes_changes_no_bit(backend, options):
    backends.named(backend, *ALIKE)
    value, gradient = asked(backend, X, Y, **OPTIONS, **options)
    rows, classes = np.random.default_rng(1).permutation(N), np.random.default_rng(2).permutation(C)
    places = np.argsort(classes)
    moved = {n: a[rows] if n == "weights" else a[classes] for n, a in options.items()}
    other, other_gradient = asked(backend, X[rows][:, classes], places[Y[rows]], **OPTIONS, **moved)
    assert np.array_equal(bits(other), bits(value[rows]))
    assert np.array_equal(bits(other_gradient), bits(gradient[rows][:, classes]))
    scalar = {**OPTIONS, "reduction": "mean", **options}
    a, _ = asked(backend, X, Y, **scalar)
    b, _ = asked(backend, X[rows][:, classes], places[Y[rows]], **{**scalar, **moved})
    assert bits(a) == bits(b)


def test_what_stands_beside_an_entry_changes_no_bit(backend):
    backends.named(backend, *ALIKE)
    value, gradient = asked(backend, X, Y, **OPTIONS)
    for part in (slice(0, 1), slice(5, 12)):
        alone, alone_gradient = asked(backend, X[part], Y[part], **OPTIONS)
        assert np.array_equal(bits(alone), bits(value[part]))
        assert np.array_equal(bits(alone_gradient), bits(gradient[part]))


def test_classes_that_do_not_exist_change_no_bit(backend):
    """A vocabulary that is padded, with -inf or by class_mask, gives the numbers of the vocabulary."""
    backends.named(backend, *ALIKE)
    options = {**OPTIONS, "label_smoothing": 0.0, "softcap": None}
    value, gradient = asked(backend, X, Y, **options)
    padded = np.concatenate([X, np.full((N, 20), -np.inf, np.float32)], axis=1)
    other, other_gradient = asked(backend, padded, Y, **options)
    assert np.array_equal(bits(other), bits(value))
    assert np.array_equal(bits(other_gradient[:, :C]), bits(gradient))
    padded[:, C:] = 5.0
    exists = np.arange(C + 20) < C
    other, other_gradient = asked(backend, padded, Y, class_mask=exists, **options)
    assert np.array_equal(bits(other), bits(value))
    assert np.array_equal(bits(other_gradient[:, :C]), bits(gradient))


@pytest.mark.of_backend("torch")
def test_threads_change_no_bit():
    torch = pytest.importorskip("torch")
    x = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    y, before = torch.arange(64), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(loss(x, y, z_loss=1e-4).item())
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


@pytest.mark.of_backend("jax-x32")
def test_what_a_program_knows_beforehand_changes_no_bit():
    """XLA makes a product of a division by a constant, and one constant of two."""
    jax = pytest.importorskip("jax")
    x, mask = jax.numpy.asarray(X), np.random.default_rng(5).random((N, C)) < 0.6
    weights = np.broadcast_to(WEIGHTS[:, None], (N, C))
    mean = functools.partial(ml.masked_mean, axis=1, reproducible=True)
    want, wide = mean(X, mask, weights=weights), loss(X, Y, weights=WEIGHTS, class_weights=CLASS_WEIGHTS, **OPTIONS)
    captured = jax.jit(lambda x: mean(x, jax.numpy.asarray(mask), weights=jax.numpy.asarray(weights)))
    assert np.array_equal(bits(captured(x)), bits(want))
    given = [jax.numpy.asarray(a) for a in (Y, WEIGHTS, CLASS_WEIGHTS)]

    def of_logits(x):
        y, weights, class_weights = given
        return loss(x, y, weights=weights, class_weights=class_weights, **OPTIONS)

    assert np.array_equal(bits(jax.jit(of_logits)(x)), bits(wide))
    assert np.array_equal(bits(jax.jit(lambda: of_logits(x))()), bits(wide))


@pytest.mark.of_backend("jax-x32")
@pytest.mark.parametrize("denominator", [None, 7.0])
def test_numbers_for_arrays_change_no_bit(denominator):
    """Of 7 entries, so that no number is a power of two."""
    jax = pytest.importorskip("jax")
    options = {
        "weights": float(np.float32(0.3)),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "denominator": denominator,
        "softcap": 7.0,
    }
    x, y, up = X[:7], Y[:7], np.float32(0.7)
    given = jax.jit(lambda x, up: jax.vjp(lambda x: loss(x, jax.numpy.asarray(y), **options), x)[1](up)[0])
    weights = np.full(7, 0.3, np.float32)
    arrays = {"weights": jax.numpy.asarray(weights)}
    arrays |= {} if denominator is None else {"denominator": jax.numpy.asarray(denominator)}

    def of_arrays(x, up, arrays):
        return jax.vjp(lambda x: loss(x, jax.numpy.asarray(y), **{**options, **arrays}), x)[1](up)[0]

    with jax.disable_jit():
        want = of_arrays(jax.numpy.asarray(x), up, arrays)
    assert np.array_equal(bits(given(x, up)), bits(want))
    assert np.array_equal(bits(jax.jit(of_arrays)(x, up, arrays)), bits(want))
    value = loss(x, y, **options)
    assert bits(jax.jit(lambda x: loss(x, jax.numpy.asarray(y), **options))(x)) == bits(value)


# Defects, by which some library's bits differ from NumPy's, or some order's from another's.


def test_a_floating_sum_in_the_place_of_an_integer_one_is_found(backend):
    """Of numbers that cancel, which are known to fewer places than float32 has when they are added in float64."""
    backends.named(backend, *ALIKE)
    half = RNG.normal(size=2048).astype(np.float32) * 1e7
    values = np.concatenate([half, -half, np.float32([1e-6])])
    orders = [np.random.default_rng(i).permutation(4097) for i in range(20)]
    assert len({np.float32(sum(values[order].tolist())) for order in orders}) > 1
    with backends.settings(backend):
        given = [backends.asarray(backend, values[order]) for order in orders]
        assert len({float(ml.masked_sum(x, reproducible=True)) for x in given}) == 1
        assert len({float(ml.reduce(x, reduction="sum", reproducible=True)) for x in given}) == 1


@pytest.mark.of_backend("jax-x32")
def test_a_product_that_meets_a_sum_is_found():
    """Planted: without the roundings that stand between, XLA contracts what NumPy rounds twice."""
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(17)
    a, b, c = (rng.normal(size=200_000) for _ in range(3))
    with jax.enable_x64(True):
        xp = exact.order_free(namespace_of(jax.numpy.asarray(a)))
        contracted = jax.jit(lambda a, b, c: a * b + c)(a, b, c)
        settled = jax.jit(lambda a, b, c: xp.times(a, b) + c)(*map(jax.numpy.asarray, (a, b, c)))
    assert (np.asarray(contracted) != a * b + c).any()
    assert np.array_equal(bits(settled), bits(a * b + c))


@pytest.mark.of_backend("jax-x32")
def test_a_division_by_a_constant_is_found():
    jax = pytest.importorskip("jax")
    a = np.random.default_rng(19).normal(size=10_000)
    with jax.enable_x64(True):
        xp = exact.order_free(namespace_of(jax.numpy.asarray(a)))
        rewritten, kept = jax.jit(lambda a: a / 7.0)(a), jax.jit(lambda a: xp.over(a, 7.0))(jax.numpy.asarray(a))
    assert (np.asarray(rewritten) != a / 7.0).any()
    assert np.array_equal(bits(kept), bits(a / 7.0))


@pytest.mark.of_backend("numpy")
def test_subnormal_numbers_are_0():
    weights = np.asarray([1e-40, 1.0], np.float32)
    x = np.zeros((2, 2), np.float32)
    _, stats = ml.cross_entropy(x, np.asarray([0, 1]), weights=weights, with_stats=True, reproducible=True)
    assert stats.count == 1
    assert ml.masked_sum(np.asarray([1e-40], np.float32), reproducible=True) == 0


@pytest.mark.of_backend("torch")
def test_torch_has_no_second_derivative():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x, torch.tensor(Y)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.of_backend("jax-x32")
def test_jax_has_no_forward_derivative():
    jax = pytest.importorskip("jax")
    x, y = jax.numpy.asarray(X), jax.numpy.asarray(Y)
    with pytest.raises(TypeError, match=r"custom_vjp|jvp"):
        jax.jvp(lambda x: loss(x, y), (x,), (x,))


@pytest.mark.of_backend("numpy")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss(X.astype(np.float64), Y), r"reproducible is True beside logits of float64; its products need"),
        (
            lambda: loss(X, Y, implementation="autodiff"),
            r"implementation is 'autodiff'; reproducible=True has derivatives of its own",
        ),
        (
            lambda: ml.value_and_grad(functools.partial(loss, implementation="autodiff"))(X, Y),
            r"reproducible=True has derivatives of its own",
        ),
        (lambda: ml.linear_cross_entropy(X, X, Y % N, reproducible=True), r"reproducible is True; the product of hid"),
        (lambda: ml.linear_entropy(X, X, reproducible=True), r"without 'linear_'"),
        (lambda: ml.linear_label_log_probs(X, X, Y % N, reproducible=True), r"make the logits"),
        (lambda: ml.masked_sum(X.astype(np.float64), reproducible=True), r"beside x of float64"),
        (lambda: ml.masked_logsumexp(np.zeros(2**20 + 1, np.float32), reproducible=True), r"has room for 1048576"),
        (lambda: loss(np.zeros((1, 2**20 + 1), np.float32), np.asarray([0])), r"has room for 1048576"),
        (lambda: loss(X, Y + C), r"labels\[\d+\] is \d+, outside"),
        (lambda: loss(X, Y, z_loss=-1.0), r"z_loss is -1.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.of_backend("numpy")
def test_reproducible_is_a_bool():
    with pytest.raises(TypeError, match=r"reproducible is 1; it must be one of True, False"):
        ml.cross_entropy(X, Y, reproducible=1)


@pytest.mark.of_backend("torch")
def test_a_device_without_float64_is_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3)
    monkeypatch.setattr(type(namespace_of(x)), "device_kind", lambda xp, x: "mps")
    with pytest.raises(ValueError, match=r"beside logits of torch mps; its numbers are of float64"):
        loss(x, torch.tensor([0, 1]))


WIDE = {
    "plain": {},
    "weighed": {"weights": WEIGHTS, "class_weights": CLASS_WEIGHTS},
    "all": {"weights": WEIGHTS, "class_weights": CLASS_WEIGHTS, **OPTIONS},
    "soft": {"labels": "distributions", "weights": WEIGHTS, "class_weights": CLASS_WEIGHTS, **OPTIONS},
    "sequences": {"weights": WEIGHTS, **OPTIONS},
}


@pytest.fixture
def unrounded(monkeypatch):
    """Results in float64, by the expressions that XLA is given."""
    from maskloss._bindings import reproducible, reproducible_reductions

    for module in (reproducible, reproducible_reductions):
        monkeypatch.setattr(module, "rounded", lambda x, dtype, xp: x)
    monkeypatch.setattr(reproducible, "is_walked", lambda rows, xp: False)
    return reproducible_reductions.FUNCTIONS


def differ(function, options, arrays, cotangents, wanted):
    """How many numbers of each output of a function differ under jit from NumPy's."""
    import jax

    def outputs(arrays, cotangents):
        given = {**{n: arrays[n] for n in list(arrays)[:1]}, **options, **arrays}
        results, saved = function.value_of(given)
        floats = [
            c if c.shape == r.shape and "int" not in str(r.dtype) else None
            for c, r in zip(cotangents, results, strict=False)
        ]
        return [*results, *saved, function.gradients_of(given, saved, floats, wanted)]

    with np.errstate(all="ignore"):
        want = outputs(arrays, cotangents)
    with jax.enable_x64(True):
        on_jax = {n: jax.numpy.asarray(a) for n, a in arrays.items()}
        got = jax.jit(outputs)(on_jax, [jax.numpy.asarray(c) for c in cotangents])
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return [int(np.sum((np.asarray(a) != b) & ((b == b) | (np.asarray(a) == np.asarray(a))))) for a, b in pairs]


@pytest.mark.of_backend("jax-x32")
@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        ("plain", "mean"),
        ("weighed", "none"),
        ("all", "mean"),
        ("soft", "none"),
        ("soft", "mean"),
        ("sequences", "none"),
        ("sequences", "mean_over_sequences"),
    ],
)
def test_no_bit_differs_before_the_last_rounding(name, reduction, unrounded):
    """In float64, where a contraction shows that the rounding to float32 would hide in all but 1 of 2^28 numbers."""
    pytest.importorskip("jax")
    q = np.random.default_rng(23).dirichlet(np.ones(C), N).astype(np.float32)
    arrays = {"logits": X.reshape(4, 6, C), "labels": Y.reshape(4, 6)}
    options = {**ml.cross_entropy.__wrapped__.__kwdefaults__, "with_stats": True, "reproducible": True}
    for key, given in (WIDE[name] | {"reduction": reduction}).items():
        if key == "labels":
            arrays["labels"] = q.reshape(4, 6, C)
        elif isinstance(given, np.ndarray):
            arrays[key] = given.reshape(4, 6) if key == "weights" else given
        else:
            options[key] = given
    shape = (4, 6) if reduction == "none" else ()
    cotangents = [np.random.default_rng(i).normal(size=shape if i == 0 else ()).astype(np.float32) for i in range(6)]
    wanted = frozenset(n for n, a in arrays.items() if a.dtype == np.float32)
    options = {n: a for n, a in options.items() if n not in arrays}
    assert set(differ(unrounded["loss"], options, arrays, cotangents, wanted)) == {0}


OF_AXIS = {"axis": 1, "keepdims": False, "empty": 0.0}
OTHERS = {
    "sum": ({"x": X, "mask": X > -1, "weights": X[:, :1]}, OF_AXIS),
    "mean": ({"x": X, "mask": X > -1, "weights": X[:, :1]}, OF_AXIS),
    "logsumexp": ({"x": X, "mask": X > -1}, OF_AXIS),
    "softmax": ({"x": X, "mask": X > -1}, {"axis": 1}),
    "log_softmax": ({"x": X, "mask": X > -1}, {"axis": 1}),
    "reduce": ({"values": X, "mask": X > -1, "weights": X[:, :1]}, {"reduction": "mean", "denominator": 7.0}),
    "entropy": ({"logits": X, "class_mask": X > -1}, {"mask": None, "softcap": 7.0, "axis": -1, "class_shard": None}),
}


@pytest.mark.of_backend("jax-x32")
@pytest.mark.parametrize("name", OTHERS)
def test_no_bit_of_the_other_functions_differs_before_the_last_rounding(name, unrounded):
    pytest.importorskip("jax")
    arrays, options = OTHERS[name]
    shape = X.shape if "softmax" in name else () if name == "reduce" else (N,)
    cotangents = [np.random.default_rng(0).normal(size=shape).astype(np.float32)]
    wanted = frozenset(n for n, a in arrays.items() if a.dtype == np.float32)
    assert set(differ(unrounded[name], options, arrays, cotangents, wanted)) == {0}


@pytest.mark.of_backend("jax-x32")
def test_class_shard_of_jax_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match=r"reproducible is True beside class_shard; in jax.shard_map it is not"):
        loss(jax.numpy.asarray(X), jax.numpy.asarray(Y), class_shard=ml.ClassShard("classes"))


@pytest.mark.of_backend("jax-x32")
def test_a_fast_math_flag_is_found():
    """Under which a compiler may do what it likes, and nothing is promised."""
    pytest.importorskip("jax")
    if not identity_is_whole():
        pytest.skip("asked by `nox -s identity`")
    test = f"{__file__}::test_no_bit_differs_before_the_last_rounding[all-mean]"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--backend", "jax-x32", test]
    flags = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
