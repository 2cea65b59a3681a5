"""Classes in parts beyond the matrix: what goes between the processes, second derivatives, what is refused."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.backends import named, with_processes
from tests.programs import PROCESSES, on_processes

BEGIN = """
    from torch.distributed.device_mesh import init_device_mesh

    entries, features, held = (4, 5), 3, 6
    classes = processes * held
    mesh = init_device_mesh("cpu", (processes,))
    shard = ml.ClassShard(mesh)
    logits, hidden, kernel = normal(*entries, classes), normal(*entries, features), normal(classes, features)
    labels = torch.randint(classes, entries, generator=generator)
    mask, class_weights = torch.rand(entries, generator=generator) < 0.6, normal(classes).abs()
    soft = torch.softmax(normal(*entries, classes), -1)
    own = slice(rank * held, (rank + 1) * held)


    def refused(kind, words, call):
        try:
            call()
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
"""

COLLECTIVES = """
    x, count, per_class = logits[..., own].clone().requires_grad_(), labels.numel(), class_weights[own]
    h, k = hidden.clone().requires_grad_(), kernel[own].clone().requires_grad_()
    ml.cross_entropy(x, labels, class_shard=shard)  # the first compares the parts
    OF = {
        "plain": ([count, 2 * count], lambda: ml.cross_entropy(x, labels, class_shard=shard)),
        "mask": ([count, 2 * count], lambda: ml.cross_entropy(x, labels, mask=mask, class_shard=shard)),
        "smoothing": (
            [count, 3 * count + 1],
            lambda: ml.cross_entropy(x, labels, label_smoothing=0.1, z_loss=0.1, class_shard=shard),
        ),
        "soft": ([count, count, 3 * count], lambda: ml.cross_entropy(x, soft[..., own], class_shard=shard)),
        "class_weights": (
            [count, count, 2 * count],
            lambda: ml.cross_entropy(x, labels, class_weights=per_class, class_shard=shard),
        ),
        "stats": (
            [count, 2 * count, count, count],
            lambda: ml.cross_entropy(x, labels, with_stats=True, class_shard=shard)[0],
        ),
        "log_probs": ([count, 2 * count], lambda: ml.label_log_probs(x, labels, class_shard=shard).sum()),
        "entropy": ([count, 2 * count], lambda: ml.entropy(x, class_shard=shard).sum()),
        "linear": ([count, 2 * count], lambda: ml.linear_cross_entropy(h, k, labels, chunk_size=3, class_shard=shard)),
    }
    for name, (wanted, call) in OF.items():
        with Collectives() as forward:
            loss = call()
        assert forward.sizes == wanted, (name, forward.sizes, wanted)
        with Collectives() as backward:
            loss.backward()
        # Of the hidden states' gradient, which is a sum over the classes.
        assert backward.sizes == ([h.numel()] if name == "linear" else []), (name, backward.sizes)
    with Collectives() as gathered:  # what the logits' size would look like
        dist.all_reduce(torch.zeros_like(logits))
    assert max(gathered.sizes) > 4 * count
"""

SECOND = """
    def twice(x, y, *, mask=mask, **options):
        (gradient,) = torch.autograd.grad(ml.cross_entropy(x, y, mask=mask, **options), x, create_graph=True)
        return torch.autograd.grad((gradient * vector[..., : x.shape[-1]]).sum(), x)[0]


    def of_weights(x, weights, **options):
        loss = ml.cross_entropy(x, labels, weights=weights, **options)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (found,) = torch.autograd.grad((gradient * vector[..., : x.shape[-1]]).sum(), weights)
        return found


    # The same vector for each part, so that the sum over parts is that of the whole.
    vector = normal(*entries, held).repeat(1, 1, processes)
    for y, options in ((labels, {}), (labels, {"label_smoothing": 0.1, "z_loss": 0.1}), (soft, {})):
        part = {"class_shard": shard, **options}
        of_part = twice(logits[..., own].clone().requires_grad_(), y if y is labels else y[..., own], **part)
        whole = twice(logits.clone().requires_grad_(), y, **options)
        torch.testing.assert_close(of_part, whole[..., own], rtol=1e-11, atol=1e-13)
    weights = normal(*entries)
    found = of_weights(logits[..., own].clone().requires_grad_(), weights.clone().requires_grad_(), class_shard=shard)
    whole = of_weights(logits.clone().requires_grad_(), weights.clone().requires_grad_())
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-13)


    def linear_twice(h, k, **options):
        loss = ml.linear_cross_entropy(h, k, labels, mask=mask, **options)
        d_h, d_k = torch.autograd.grad(loss, (h, k), create_graph=True)
        return d_h, d_k, *torch.autograd.grad((d_k**2).sum(), (h, k))


    whole = linear_twice(hidden.clone().requires_grad_(), kernel.clone().requires_grad_())
    part = linear_twice(hidden.clone().requires_grad_(), kernel[own].clone().requires_grad_(), class_shard=shard)
    for i, (a, b) in enumerate(zip(part, whole, strict=True)):
        torch.testing.assert_close(a, b[own] if i % 2 else b, rtol=1e-11, atol=1e-13)
"""

COMPILED = """
    import functools

    import maskloss._bindings.torch as binding

    sizes = [8, 0, 10, 6]
    start = sum(sizes[:rank])
    own, uneven = slice(start, start + sizes[rank]), ml.ClassShard(mesh, start, classes)
    given = {"mask": mask, "class_weights": class_weights}
    OPTIONS = (
        ((), {}),
        (("mask",), {"reduction": "none", "z_loss": 0.1}),
        (("mask", "class_weights"), {"label_smoothing": 0.1, "softcap": 3.0, "with_stats": True}),
    )


    def losses(function, names, options, y, class_shard, *variables):
        arrays = {n: given[n] for n in names}
        if class_shard is not None and "class_weights" in arrays:
            arrays["class_weights"] = arrays["class_weights"][own]
        found = function(*variables, y, **arrays, **options, class_shard=class_shard)
        return found if options.get("with_stats") else (found, ())


    def same(function, y, *variables, compiled, split, of=OPTIONS):
        for names, options in of:
            parts = [(x[..., own] if s == -1 else x[own] if s == 0 else x).clone().requires_grad_()
                     for x, s in zip(variables, split, strict=True)]
            wholes = [x.clone().requires_grad_() for x in variables]
            y_of_part = y[..., own] if y.is_floating_point() else y
            of_part = compiled(lambda *x: losses(function, names, options, y_of_part, uneven, *x))
            loss, stats = of_part(*parts)
            wanted, wanted_stats = losses(function, names, options, y, None, *wholes)
            found = torch.autograd.grad(loss.sum(), parts)
            gradients = torch.autograd.grad(wanted.sum(), wholes)
            gradients = [x[..., own] if s == -1 else x[own] if s == 0 else x
                         for x, s in zip(gradients, split, strict=True)]
            for a, b in zip((loss, *found, *stats), (wanted, *gradients, *wanted_stats), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13, msg=lambda text: f"{names}, {options}: {text}")


    def compiled(function, backend="aot_eager"):
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, backend=backend)


    # Inductor, which runs what is constant while it compiles, once: four of them on two cores take their time.
    inductor = functools.partial(compiled, backend="inductor")
    same(ml.cross_entropy, labels, logits, compiled=inductor, split=[-1], of=OPTIONS[2:])
    binding.LEAST_SKIPPED = 1  # operators, where a mask spares work
    same(ml.cross_entropy, labels, logits, compiled=compiled, split=[-1], of=OPTIONS[1:2])
    same(ml.cross_entropy, soft, logits, compiled=compiled, split=[-1], of=OPTIONS[2:])


    def linear(*arrays, **options):
        return ml.linear_cross_entropy(*arrays, chunk_size=3, **options)


    same(linear, labels, hidden, kernel, compiled=compiled, split=[None, 0], of=OPTIONS[::2])
    # The parts are compared while it compiles, where no call has compared them.
    overlap = ml.ClassShard(mesh, 0, classes)
    refused(Exception, "they overlap", lambda: compiled(lambda x: ml.entropy(x, class_shard=overlap))(logits[..., own]))
"""

TRANSFORMED = """
    from torch.autograd import forward_ad
    from torch.func import grad, jvp, vmap

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


    x, t, of_part = logits[..., own].clone(), normal(*entries, classes), {"class_shard": shard}
    own_t = t[..., own].contiguous()


    def loss(x, **options):
        return ml.cross_entropy(x, labels, mask=mask, label_smoothing=0.1, **options)


    def part_of_loss(x):
        return loss(x, **of_part)


    close(grad(part_of_loss)(x), grad(loss)(logits)[..., own])
    close(jvp(part_of_loss, (x,), (own_t,)), jvp(loss, (logits,), (t,)))
    close(jvp(grad(part_of_loss), (x,), (own_t,))[1], jvp(grad(loss), (logits,), (t,))[1][..., own])
    far = logits.clone()
    far[..., :held] -= 40.0  # a part with 1e-18 of the total
    first = torch.zeros_like(labels)
    found = grad(lambda x: ml.cross_entropy(x, first, **of_part))(far[..., own])
    wanted = grad(lambda x: ml.cross_entropy(x, first))(far)[..., own]
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=0.0)
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, own_t), **of_part)).tangent
        close(along, forward_ad.unpack_dual(loss(forward_ad.make_dual(logits, t))).tangent)
    for function in (ml.cross_entropy, lambda x, y, **options: ml.entropy(x, **options)):
        parts = vmap(grad(lambda x, y: function(x, y, **of_part).sum()))(x, labels)
        close(parts, vmap(grad(lambda x, y: function(x, y).sum()))(logits, labels)[..., own])


    def linear(h, k, **options):
        return ml.linear_cross_entropy(h, k, labels, mask=mask, **options)


    d_hidden, d_kernel = grad(lambda h, k: linear(h, k, **of_part), (0, 1))(hidden, kernel[own])
    whole = grad(linear, (0, 1))(hidden, kernel)
    close((d_hidden, d_kernel), (whole[0], whole[1][own]))
    t = normal(*hidden.shape), normal(*kernel.shape)
    along = jvp(lambda h, k: linear(h, k, **of_part), (hidden, kernel[own]), (t[0], t[1][own]))
    close(along, jvp(linear, (hidden, kernel), t))
"""

REFUSED = """
    x = logits[..., own]
    group = mesh.get_group()
    overlap = ml.ClassShard(group, 0, classes)
    refused(ValueError, "they overlap: together they must be all classes, once",
            lambda: ml.cross_entropy(x, labels, class_shard=overlap))
    gap = ml.ClassShard(group, rank * (held + 1), processes * (held + 1))
    refused(ValueError, "they leave a gap", lambda: ml.cross_entropy(x, labels, class_shard=gap))
    other = ml.ClassShard(group, rank * held, classes + (rank == 1))
    refused(ValueError, "agree on how many classes", lambda: ml.cross_entropy(x, labels, class_shard=other))
    more = ml.ClassShard(group, rank * held, classes + 1)
    refused(ValueError, "together they must be all classes", lambda: ml.cross_entropy(x, labels, class_shard=more))
    rows = slice(0, 3 if rank == 1 else 4)
    refused(ValueError, "each process must hold the same entries",
            lambda: ml.cross_entropy(x[rows], labels[rows], class_shard=ml.ClassShard(group)))
    wrong = labels.clone()
    wrong[1, 2] = classes
    refused(ValueError, f"labels[1, 2] is {classes}, outside the classes [0, {classes})",
            lambda: ml.cross_entropy(x, wrong, class_shard=shard))
    exists = torch.ones_like(logits, dtype=torch.bool)
    exists[2, 3, labels[2, 3]] = False
    refused(ValueError, "a class that class_mask excludes there",
            lambda: ml.cross_entropy(x, labels, class_mask=exists[..., own], class_shard=shard))
    refused(TypeError, "it must be a maskloss.ClassShard", lambda: ml.cross_entropy(x, labels, class_shard=group))
    refused(TypeError, "must be a torch ProcessGroup", lambda: ml.entropy(x, class_shard=ml.ClassShard("tensor")))
    refused(ValueError, "given start alone", lambda: ml.ClassShard(group, 0))
"""

# The last process is gone before the others call, which wait no longer than their group does.
KILLED = """
    group = dist.new_group(timeout=datetime.timedelta(seconds=10))
    own = slice(rank * held, (rank + 1) * held)
    dist.barrier()  # all have met
    if rank == processes - 1:
        os._exit(0)
    refused(RuntimeError, "", lambda: ml.cross_entropy(logits[..., own], labels, class_shard=ml.ClassShard(group)))
    os._exit(0)
"""

JAX = """
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import PartitionSpec as P

    import maskloss as ml

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    entries, features, classes = (3, 5), 4, 16
    shapes = (*entries, classes), (*entries, features), (classes, features)
    x, hidden, kernel = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    labels, mask = jnp.asarray(rng.integers(0, classes, entries)), jnp.asarray(rng.random(entries) < 0.6)
    soft = jax.nn.softmax(jnp.asarray(rng.normal(size=(*entries, classes))))
    weights, class_weights = jnp.asarray(rng.normal(size=entries)), jnp.asarray(rng.random(classes))
    exists = jnp.asarray(rng.random((*entries, classes)) < 0.7) | (jnp.arange(classes) == labels[..., None])
    arrays = {"mask": mask, "weights": weights, "class_weights": class_weights, "class_mask": exists}
    mesh = jax.make_mesh((8,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    last, shard = P(None, None, "v"), ml.ClassShard("v")
    of = {"mask": P(), "weights": P(), "class_weights": P("v"), "class_mask": last}


    def split(function, *specs, out=P()):
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out)


    def same(a, b, *arrays):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)
        jax.tree.map(close, jax.jit(a)(*arrays), jax.jit(b)(*arrays))


    for names, options, y in (
        ((), {}, labels),
        (("mask", "weights"), {"z_loss": 0.1, "label_smoothing": 0.1}, labels),
        (("mask", "class_weights"), {"softcap": 3.0, "reduction": "mean_over_sequences"}, labels),
        (("class_mask", "class_weights"), {"label_smoothing": 0.2}, labels),
        (("mask", "class_weights"), {}, soft),
    ):
        given = {n: arrays[n] for n in names}

        def loss(x, y, given, **more):
            return ml.cross_entropy(x, y, **given, **options, **more)

        specs = last, last if y is soft else P(), {n: of[n] for n in names}
        parts = split(lambda x, y, given: loss(x, y, given, class_shard=shard, with_stats=True), *specs)
        whole = functools.partial(loss, with_stats=True)
        same(*(jax.value_and_grad(f, has_aux=True) for f in (parts, whole)), x, y, given)
        if "z_loss" in options:
            alone = split(lambda x, y, given: loss(x, y, given, class_shard=shard), *specs)
            same(jax.hessian(alone), jax.hessian(loss), x, y, given)
            within = split(jax.grad(lambda x, y, given: loss(x, y, given, class_shard=shard)), *specs, out=last)
            same(within, jax.grad(loss), x, y, given)


    def linear(hidden, kernel, labels, **more):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, with_stats=True, **more)


    parts = split(lambda h, k, y: linear(h, k, y, class_shard=shard), P(), P("v"), P())
    same(*(jax.value_and_grad(f, (0, 1), has_aux=True) for f in (parts, linear)), hidden, kernel, labels)


    def in_chunks(hidden, kernel, y, given, **more):
        options = {"chunk_size": 4, "label_smoothing": 0.1 * (y is labels), "z_loss": 0.1, "softcap": 3.0}
        options |= {"with_stats": True}
        return ml.linear_cross_entropy(hidden, kernel, y, **given, **options, **more)


    for y, names in ((labels, ("mask", "weights")), (labels, ("class_mask",)), (soft, ("mask", "class_weights"))):
        given = {n: arrays[n] for n in names}
        specs = P(), P("v"), last if y is soft else P(), {n: of[n] for n in names}
        parts = split(lambda h, k, y, given: in_chunks(h, k, y, given, class_shard=shard), *specs)
        same(*(jax.value_and_grad(f, (0, 1), has_aux=True) for f in (parts, in_chunks)), hidden, kernel, y, given)
    # A part with 1e-18 of the total, and with the label, has its gradient to the last digits as well.
    far = jnp.asarray(rng.normal(size=(5, classes))).at[:, :2].add(-40.0)
    of_far, kernel_of_far = jnp.ones(5, jnp.int32), far.T


    def few(x, **more):
        return ml.cross_entropy(x, of_far, label_smoothing=0.1, **more) + ml.cross_entropy(x, of_far, **more)


    def few_of(kernel, **more):
        return ml.linear_cross_entropy(jnp.eye(5), kernel, of_far, chunk_size=2, **more)


    for function, variable, spec in ((few, far, P(None, "v")), (few_of, kernel_of_far, P("v"))):
        parts = split(functools.partial(function, class_shard=shard), spec)
        found, wanted = (jax.jit(jax.grad(f))(variable) for f in (parts, function))
        np.testing.assert_allclose(found, wanted, rtol=1e-11)
    # Of 512 x 512 logits on each device, 64 rows at a time, in the forward and in the backward.
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((512, features), (8 * 512, features))]


    def of_many(hidden, kernel):
        labels = jnp.zeros(hidden.shape[0], jnp.int32)
        return ml.linear_cross_entropy(hidden, kernel, labels, chunk_size=64, with_stats=True, class_shard=shard)


    program = jax.jit(jax.value_and_grad(split(of_many, P(), P("v")), (0, 1), has_aux=True)).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < 512 * 512 * 8 // 2, program.memory_analysis()
    assert " all-gather(" not in program.as_text()
    entropy = split(lambda x: ml.entropy(x, mask=mask, class_shard=shard).sum(), last)
    same(jax.value_and_grad(entropy), jax.value_and_grad(lambda x: ml.entropy(x, mask=mask).sum()), x)

    program = jax.jit(split(lambda x: ml.cross_entropy(x, labels, mask=mask, class_shard=shard), last)).lower(x)
    text = program.compile().as_text()
    assert text.count(" all-reduce(") == 2, text
    assert " all-gather(" not in text

    try:
        split(lambda x: ml.cross_entropy(x, labels, class_shard=ml.ClassShard("w")), last)(x)
    except ValueError as error:
        assert "must name an axis" in str(error), error
    else:
        raise AssertionError("not refused")
"""


@pytest.fixture
def torch(backend):
    with_processes(backend)


def test_in_processes(torch, tmp_path):
    """One start of the processes for all that is asked, and last for what one of them dies of."""
    program = COLLECTIVES, SECOND, TRANSFORMED, REFUSED, COMPILED, KILLED
    codes, errors = on_processes(tmp_path, BEGIN, *program, timeout=120)
    assert codes == [0] * PROCESSES, "\n".join(errors)[-6000:]


def test_in_shard_map(backend):
    named(backend, "jax")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(JAX)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | flags)
    assert done.returncode == 0, done.stderr[-4000:]


def test_numpy_has_no_groups(backend):
    named(backend, "numpy")
    import numpy as np

    import maskloss as ml

    with pytest.raises(TypeError, match="numpy has no groups of processes"):
        ml.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), class_shard=ml.ClassShard("tensor"))
