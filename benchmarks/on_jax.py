"""What is measured in JAX, all under jit; and what XLA says of its memory."""

import os

import jax
import jax.numpy as jnp
from optax import softmax_cross_entropy_with_integer_labels as per_entry

import maskloss as ml

from .cases import Arrays
from .library import COMPARED, Library


def waited_for(function, given):
    """A call that is over when its answer is there; `planned` are the bytes that XLA plans beyond its arguments."""

    def call():
        return jax.block_until_ready(function(*given))

    def planned():
        plan = function.lower(*given).compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.output_size_in_bytes

    call.planned = planned
    return call


def build_of(loss):
    """loss(case) is a function of (*inputs, labels, mask)."""

    def build(case, x):
        function, places = loss(case), tuple(range(len(x.inputs)))
        given = (*x.inputs, x.labels, x.mask)

        def scaled(*given):
            return function(*given) * case.upstream

        def with_gradient(upstream, *given):
            if upstream is None:
                value, gradients = jax.value_and_grad(scaled, places)(*given)
                return value, *gradients
            inputs, rest = given[: len(places)], given[len(places) :]
            losses, pull = jax.vjp(lambda *inputs: function(*inputs, *rest), *inputs)
            return losses, *pull(upstream.astype(losses.dtype))

        return waited_for(jax.jit(function), given), waited_for(jax.jit(with_gradient), (x.upstream, *given))

    return build


def maskloss(case):
    if case.features:
        return lambda hidden, kernel, labels, mask: ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)
    return lambda logits, labels, mask: ml.cross_entropy(logits, labels, mask=mask, reduction=case.reduction)


def reduced(per_entry, mask, reduction):
    """As Optax's documentation averages: the sum of what the mask keeps, over their number."""
    if reduction == "none":
        return per_entry if mask is None else per_entry * mask
    return per_entry.mean() if mask is None else (per_entry * mask).sum() / mask.sum()


def optax(case):
    return lambda logits, labels, mask: reduced(per_entry(logits, labels), mask, case.reduction)


def optax_where(case):
    return lambda logits, labels, mask: per_entry(logits, labels, where=mask).sum() / mask.sum()


def optax_in_float32(case):
    """Of logits in half precision, or of a projection's."""

    def logits_of(x, kernel=None):
        x = x if kernel is None else jnp.matmul(x, kernel.T, preferred_element_type=jnp.float32)
        return x.astype(jnp.float32)

    def loss(*given):
        *inputs, labels, mask = given
        return optax(case)(logits_of(*inputs), labels, mask)

    return loss


def jax_nn(case):
    def loss(logits, labels, mask):
        log_probs = jax.nn.log_softmax(logits)
        return reduced(-jnp.take_along_axis(log_probs, labels[..., None], -1)[..., 0], mask, case.reduction)

    return loss


def products(case, x):
    @jax.jit
    def call(hidden, kernel):
        logits = hidden @ kernel.T
        return logits @ kernel, logits.T @ hidden

    return None, waited_for(call, x.inputs)


PAGE = {
    "maskloss": build_of(maskloss),
    "optax": build_of(optax),
    "optax, where": build_of(optax_where),
    "jax.nn": build_of(jax_nn),
}


class Jax(Library):
    builders = PAGE
    memory = "planned by XLA"

    def start(self, device):
        if device == "cpu" and "JAX_PLATFORMS" not in os.environ:
            jax.config.update("jax_platforms", "cpu")

    def arrays(self, case, given, device):
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        inputs = tuple(jnp.asarray(x, case.dtype) for x in given.inputs)
        rest = [None if x is None else jnp.asarray(x) for x in given[1:]]
        return jax.block_until_ready(Arrays(inputs, *rest))

    def peak(self, call, warm):
        return call.planned()

    def reading(self, n):
        return waited_for(jax.jit(lambda x: x.sum(-1)), (jnp.ones((max(n // 4096, 1), 4096)),))

    def writing(self, n):
        """Into the memory of its own argument, which is donated."""
        held = [jnp.ones(max(n, 1), "float32")]
        function = jax.jit(lambda x: jnp.full_like(x, 2.0), donate_argnums=0, keep_unused=True)

        def fill():
            held[0] = function(held[0]).block_until_ready()

        return fill

    def product(self, side):
        return waited_for(jax.jit(lambda x: x @ x), (jnp.ones((side, side)),))

    def tiny(self, given):
        arrays = (jnp.asarray(given.inputs[0]), jnp.asarray(given.labels))

        def ours(x, labels):
            return ml.cross_entropy(x, labels)

        def raw(x, labels):
            return (jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, labels[:, None], -1)[:, 0]).mean()

        return {
            name: [
                tuple(waited_for(jit(way(f)), arrays) for f in (ours, raw)) for way in (lambda f: f, jax.value_and_grad)
            ]
            for name, jit in (("jax, jit", jax.jit), ("jax, not jitted", lambda f: f))
        }

    def warm_compiler(self):
        jax.jit(lambda x: x + 1)(1.0).block_until_ready()


LINEAR = {
    "maskloss": build_of(maskloss),
    "optax on hidden @ kernel.T": build_of(optax_in_float32),
    "three products": products,
}


class JaxLinear(Jax):
    builders = LINEAR


ON_DEVICE = {"maskloss": build_of(maskloss), "optax": build_of(optax_in_float32)}


class JaxOnDevice(Jax):
    builders = ON_DEVICE

    def start(self, device):
        super().start(device)
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"

    def arrays(self, case, given, device):
        self.stride = max(1, case.rows // COMPARED)
        return super().arrays(case, given, device)

    def speeds(self, case, device, take):
        return {}
