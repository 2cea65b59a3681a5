"""How each library runs a case in each mode: {entries, value, again, stats, gradients}, arrays of that library.

`entries` is reduction "none", `value` and `stats` the case's own reduction, `again` and `without a graph` the same
value by another call that must not differ. `gradients` is {input: array}, or an exception for the gradients' test to
raise.
"""

import functools
import importlib

import numpy as np
import pytest

import maskloss as ml
from tests.conformance.processes import WAYS, in_processes
from tests.conformance.runs import (
    LINEAR,
    REDUCED,
    UPSTREAM,
    axes_of,
    call,
    denominator,
    devices_of,
    leaves,
    mapped,
    namespace,
    reduction_of,
    upstream_of,
)


def forward(case, arrays, **more):
    reduction = reduction_of(case)
    out = {"value": call(case, arrays, reduction, **more)}
    if case.function == "cross_entropy":
        out["entries"] = call(case, arrays, "none", **more)
        out["again"], out["stats"] = call(case, arrays, reduction, with_stats=True, **more)
    return out | denominator(case, arrays)


def split(case, arrays):
    names = leaves(case, reduction_of(case))
    return names, tuple(arrays[n] for n in names)


def upstream(case, shape):
    return np.asarray(UPSTREAM) if case.function in REDUCED and not shape else upstream_of(shape)


def array_api_eager(case, arrays):
    out = forward(case, arrays)
    names = leaves(case, reduction_of(case))
    if case.function == "cross_entropy" and names:
        try:
            out["gradients"] = with_value_and_grad(case, arrays, names)
        except Exception as error:
            out["gradients"] = error
    return out


def with_value_and_grad(case, arrays, names):
    """ml.value_and_grad, of the sum for "none", with respect to every floating input."""
    reduction = "sum" if reduction_of(case) == "none" else reduction_of(case)
    if reduction == "sum":
        arrays = {n: a for n, a in arrays.items() if n != "denominator"}
    first = (arrays["logits"], arrays["labels"])
    rest = {n: a for n, a in arrays.items() if n not in ("logits", "labels")}
    function, given = ml.cross_entropy, dict(case.options) | {"reduction": reduction}
    if hasattr(function, "linear"):
        function, first, given = function.linear, (first[0], identity_like(first[0]), first[1]), given | CHUNKS
    argnums = tuple({"logits": 0, "labels": len(first) - 1}.get(n, n) for n in names)
    _, gradients = ml.value_and_grad(functools.partial(function, **given), argnums)(*first, **rest)
    return dict(zip(names, gradients, strict=True))


def array_api_autodiff(case, arrays):
    return forward(case, arrays, implementation="autodiff")


def torch_gradients(case, value, arrays, given=None):
    torch = importlib.import_module("torch")
    names, values = split(case, arrays)
    if not names:
        return {}
    given = upstream(case, tuple(value.shape)) if given is None else given
    up = torch.from_numpy(given.copy()).to(value)
    try:
        return dict(zip(names, torch.autograd.grad(value, values, up), strict=True))
    except RuntimeError as error:
        return error


def torch_leaves(case, arrays):
    for a in split(case, arrays)[1]:
        a.requires_grad_()
    return arrays


def torch_eager(case, arrays, **more):
    torch = importlib.import_module("torch")
    arrays = torch_leaves(case, arrays)
    out = forward(case, arrays, **more)
    with torch.no_grad():
        out["without a graph"] = call(case, arrays, reduction_of(case), **more)
    return out | {"gradients": torch_gradients(case, out["value"], arrays)}


def torch_compile(case, arrays, *, divisor=denominator):
    torch = importlib.import_module("torch")
    torch._dynamo.reset()
    arrays = torch_leaves(case, arrays)
    names = [n for n, a in arrays.items() if isinstance(a, torch.Tensor)]

    def function(*tensors):
        given = arrays | dict(zip(names, tensors, strict=True))
        if case.function != "cross_entropy":
            return {"value": call(case, given, reduction_of(case))}
        value, stats = call(case, given, reduction_of(case), with_stats=True)
        # Of what nobody derives, a compiled function has the gradient 0, and -0 + 0 is 0.
        out = {"entries": call(case, given, "none").detach(), "value": value, "stats": stats}
        return out | divisor(case, given)

    out = torch.compile(function, backend="aot_eager", fullgraph=True)(*(arrays[n] for n in names))
    return out | {"gradients": torch_gradients(case, out["value"], arrays)}


def sliced(case, arrays, is_array):
    """The function of one slice, the arrays in order, and each one's batch axis (0 or None)."""
    one, split_names, squeezed = mapped(case)
    names = [n for n, a in arrays.items() if is_array(a)]

    def function(*values):
        given = arrays | dict(zip(names, values, strict=True))
        given |= {n: given[n][0] for n in squeezed}
        return call(one, given, "none" if case.function == "cross_entropy" else None)

    return function, [arrays[n] for n in names], tuple(0 if n in split_names else None for n in names)


def torch_vmap(case, arrays):
    torch = importlib.import_module("torch")
    case = reduced_to_none(case)
    arrays = torch_leaves(case, arrays)
    function, values, axes = sliced(case, arrays, lambda a: isinstance(a, torch.Tensor))
    value = torch.func.vmap(function, in_dims=axes)(*values)
    return {"value": value, "gradients": torch_gradients(case, value, arrays)}


def reduced_to_none(case):
    return case._replace(options=dict(case.options) | {"reduction": "none"}) if case.function in REDUCED else case


def jax_gradients(case, arrays, function, **has_aux):
    """The value and the gradients by jax.vjp of function(arrays), and what else it gives."""
    jax = importlib.import_module("jax")
    names, values = split(case, arrays)
    value, back, *more = jax.vjp(lambda *v: function(arrays | dict(zip(names, v, strict=True))), *values, **has_aux)
    up = jax.numpy.asarray(upstream(case, value.shape), dtype=value.dtype)
    return value, dict(zip(names, back(up), strict=True)), *more


def jax_eager(case, arrays):
    """Every call for the representative few. Each is compiled: others have value, statistics and gradients of one."""
    if case.function == "cross_entropy" and "compile" not in case.modes and leaves(case, reduction_of(case)):
        return at_once(case, arrays)
    out = forward(case, arrays)
    try:
        gradients = jax_gradients(case, arrays, lambda a: call(case, a, reduction_of(case)))[1]
    except Exception as error:
        gradients = error
    return out | {"gradients": gradients}


def at_once(case, arrays):
    """Value, statistics and gradients together."""
    if case.function != "cross_entropy":
        value, gradients = jax_gradients(case, arrays, lambda a: call(case, a, reduction_of(case)))
        return {"value": value, "gradients": gradients}
    loss = functools.partial(call, reduction=reduction_of(case), with_stats=True)
    value, gradients, stats = jax_gradients(case, arrays, lambda a: loss(case, a), has_aux=True)
    return {"value": value, "gradients": gradients, "stats": stats}


def traced(arrays, function):
    """jit(function) of the arrays that are JAX's; Python numbers stay as they are."""
    jax = importlib.import_module("jax")
    given = {n: a for n, a in arrays.items() if isinstance(a, jax.Array)}
    return jax.jit(lambda a: function(arrays | a))(given)


def jax_jit(case, arrays):
    def function(a):
        out = {}
        if case.function == "cross_entropy":
            out = {"entries": call(case, a, "none")} | denominator(case, a)
            out["again"], out["stats"] = call(case, a, reduction_of(case), with_stats=True)
        out["value"], out["gradients"] = jax_gradients(case, a, lambda b: call(case, b, reduction_of(case)))
        return out

    return traced(arrays, function)


def jax_vmap(case, arrays):
    jax = importlib.import_module("jax")
    case = reduced_to_none(case)

    def function(a):
        def batched(b):
            of_slice, values, axes = sliced(case, b, lambda x: isinstance(x, jax.Array))
            return jax.vmap(of_slice, in_axes=axes)(*values)

        value, gradients = jax_gradients(case, a, batched)
        return {"value": value, "gradients": gradients}

    return traced(arrays, function)


def in_blocks(observe):
    """The engine in blocks of two rows of five classes, and of one row, larger than a block, of more; in any planes."""
    sizes = {"BLOCK_BYTES": 50, "ACCELERATOR_BLOCK_BYTES": 50, "LEAST_SHARED": 1}
    sizes |= {"LEAST_PLANE": 1, "LEAST_ROWS": 1}

    def mode(case, arrays):
        with pytest.MonkeyPatch.context() as patch:
            for name, size in sizes.items():
                patch.setattr(importlib.import_module("maskloss._engine.walk"), name, size)
            return observe(case, arrays)

    return mode


SMALL = {"BLOCK_BYTES": 50, "FOLD": 3, "LEAST_SKIPPED": 1, "LEAST_UNSHIFTED": 1}
SMALL_PLANES = {"FEWEST_PLANES": 1, "LEAST_PLANE": 1}


def jax_blocks(case, arrays):
    """jit that skips what is not kept, sums folded and unshifted, and takes classes where they lie, however small."""
    with pytest.MonkeyPatch.context() as patch:
        for module, sizes in (("jax_sums", SMALL), ("jax_planes", SMALL_PLANES)):
            for name, value in sizes.items():
                patch.setattr(importlib.import_module(f"maskloss._bindings.{module}"), name, value)
        # What was traced with other sizes.
        importlib.import_module("jax").clear_caches()
        try:
            return jax_jit(case, arrays)
        finally:
            importlib.import_module("jax").clear_caches()


def jax_devices(case, arrays, kind="entries"):
    """Of arrays split over up to eight devices, each with blocks and choices of its own.

    A process that has eight runs nothing else: its sizes stay small, and what it traced stays good.
    """
    jax = importlib.import_module("jax")
    vars(importlib.import_module("maskloss._bindings.jax_sums")).update(SMALL)
    counts = devices_of(case, kind)
    names = [f"axis{i}" if count > 1 else None for i, count in enumerate(counts)]
    sizes = {name: count for name, count in zip(names, counts, strict=True) if name}
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))

    def split(a):
        axes = axes_of(case, a.shape)
        spec = jax.sharding.PartitionSpec(*(None if axis is None else names[axis] for axis in axes))
        return jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))

    arrays = {n: split(a) if isinstance(a, jax.Array) else a for n, a in arrays.items()}
    out = traced(arrays, functools.partial(at_once, case))
    return jax.device_put(out, jax.devices()[0])


def in_operators(case, arrays):
    """torch.compile, where however few logits a mask may spare go through an operator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("maskloss._bindings.torch"), "LEAST_SKIPPED", 1)
        return torch_compile(case, arrays, divisor=lambda *_: {})


def in_kernels(case, arrays):
    return torch_eager(case, arrays, implementation="triton")


def in_preferred_kernels(case, arrays):
    """As on a GPU, where the kernels are the default."""
    of_torch = importlib.import_module("maskloss._arrays.torch").Torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_torch, "prefers_kernels", lambda xp, x: xp.takes_kernels(x) and not xp.is_tracer(x))
        return torch_eager(case, arrays)


def in_narrow_kernels(case, arrays, observe=in_kernels):
    """A program takes two classes at a time, or 64 and 4096 where there are many and very many."""
    classes = case.inputs["logits"].shape[case.options.get("axis", -1)]
    narrow = next(size for most, size in ((32, 2), (4096, 64), (classes, 4096)) if classes <= most)
    with pytest.MonkeyPatch.context() as patch:
        of_kernels = importlib.import_module("maskloss._bindings.launches")
        for name in ("MOST", "MOST_ROWS", "FEW", "LEAST_PLANE"):
            patch.setattr(of_kernels, name, narrow)
        return observe(case, arrays)


def in_engine(observe):
    """The engine, also where the kernels are the default."""

    def mode(case, arrays):
        of_torch = importlib.import_module("maskloss._arrays.torch").Torch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(of_torch, "prefers_kernels", lambda xp, x: False)
            return observe(case, arrays)

    return mode


CHUNKS = {"chunk_size": 2}


def identity_like(logits):
    if hasattr(logits, "new_ones"):  # PyTorch's, in words that torch.compile traces
        return logits.new_ones(logits.shape[-1]).diag()
    identity = np.eye(logits.shape[-1])
    library = type(logits).__module__.partition(".")[0]
    if library == "numpy":
        return identity.astype(logits.dtype)
    xp = namespace(logits)
    return xp.asarray(identity.tolist(), dtype=logits.dtype, **({} if "jax" in library else {"device": logits.device}))


def through_a_kernel(function):
    """The function of hidden states that are the logits, since the kernel is the identity: the product is exact."""

    def of_logits(logits, *labels, axis=-1, **options):
        return function(logits, identity_like(logits), *labels, **CHUNKS, **options)

    of_logits.linear = function
    return of_logits


def linear(observe):
    """Every case again, as one of linear_cross_entropy in chunks of two rows."""

    def mode(case, arrays):
        with pytest.MonkeyPatch.context() as patch:
            for name in LINEAR:
                patch.setattr(ml, name, through_a_kernel(getattr(ml, LINEAR[name])))
            return observe(case, arrays)

    return mode


MODES = {
    **{("autograd", mode): functools.partial(in_processes, mode=mode) for mode in WAYS},
    ("value_and_grad", "eager"): array_api_eager,
    ("value_and_grad", "autodiff"): array_api_autodiff,
    ("autograd", "eager"): torch_eager,
    ("autograd", "autodiff"): functools.partial(torch_eager, implementation="autodiff"),
    ("autograd", "compile"): torch_compile,
    ("autograd", "operators"): in_operators,
    ("autograd", "operators-linear"): linear(in_operators),
    ("autograd", "vmap"): torch_vmap,
    ("vjp", "eager"): jax_eager,
    ("vjp", "jit"): jax_jit,
    ("vjp", "vmap"): jax_vmap,
    ("value_and_grad", "blocks"): in_blocks(array_api_eager),
    ("autograd", "blocks"): in_blocks(torch_eager),
    ("vjp", "blocks"): jax_blocks,
    ("vjp", "devices"): jax_devices,
    ("vjp", "devices-classes"): functools.partial(jax_devices, kind="classes"),
    ("vjp", "devices-both"): functools.partial(jax_devices, kind="both"),
    ("vjp", "devices-linear"): linear(jax_devices),
    ("autograd", "triton"): in_kernels,
    ("autograd", "preferred"): in_preferred_kernels,
    ("autograd", "triton-blocks"): in_narrow_kernels,
    ("autograd", "triton-linear"): linear(in_kernels),
    ("value_and_grad", "linear"): linear(array_api_eager),
    ("autograd", "linear"): linear(torch_eager),
    ("vjp", "linear"): linear(jax_jit),
}
