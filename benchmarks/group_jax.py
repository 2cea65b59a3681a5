"""JAX's providers, all under jit; and what XLA says of their memory."""

import os

from provider import COMPILED, NOTHING_KEPT, Provider
from workloads import Arrays, is_shown

NAME = "jax"
PACKAGES = ("jax", "jaxlib", "optax")
IN_BFLOAT16 = ("bfloat16", None, (1e-2, 5e-2), "computed in bfloat16, but for what XLA fuses into float32")


def start():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def before_case():
    pass


def arrays(case, given):
    import jax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    logits = jax.numpy.asarray(given.logits, case.dtype)
    rest = [None if a is None else jax.numpy.asarray(a) for a in given[1:]]
    return jax.block_until_ready(Arrays(logits, *rest))


def to_numpy(result):
    import numpy as np

    if isinstance(result, tuple):
        return tuple(to_numpy(r) for r in result)
    return np.asarray(result, None if result.dtype == np.float64 else np.float32)


def jitted(function, case, x):
    """Both directions as jitted functions, and their arguments."""
    import jax

    def forward(logits, labels, mask, upstream):
        return function(logits, labels, mask)

    def scaled(logits, labels, mask):
        return function(logits, labels, mask) * case.upstream

    def with_gradient(logits, labels, mask, upstream):
        if upstream is None:
            return jax.value_and_grad(scaled)(logits, labels, mask)
        losses, pull = jax.vjp(lambda x: function(x, labels, mask), logits)
        return losses, pull(upstream.astype(losses.dtype))[0]

    return (jax.jit(forward), jax.jit(with_gradient)), (x.logits, x.labels, x.mask, x.upstream)


def build_of(loss):
    def build(case, x):
        import jax

        (forward, backward), arguments = jitted(loss(case), case, x)
        return (lambda: jax.block_until_ready(forward(*arguments)), lambda: jax.block_until_ready(backward(*arguments)))

    build.loss = loss
    return build


def maskloss(case):
    import maskloss as ml

    return lambda logits, labels, mask: ml.cross_entropy(logits, labels, mask=mask, reduction=case.reduction)


def reduced(per_entry, mask, reduction):
    """As Optax's documentation averages: the sum of what the mask keeps, over their number."""
    if reduction == "none":
        return per_entry if mask is None else per_entry * mask
    return per_entry.mean() if mask is None else (per_entry * mask).sum() / mask.sum()


def optax(case):
    from optax import softmax_cross_entropy_with_integer_labels as per_entry

    return lambda logits, labels, mask: reduced(per_entry(logits, labels), mask, case.reduction)


def optax_where(case):
    from optax import softmax_cross_entropy_with_integer_labels as per_entry

    return lambda logits, labels, mask: per_entry(logits, labels, where=mask).sum() / mask.sum()


def jax_nn(case):
    import jax

    def loss(logits, labels, mask):
        log_probs = jax.nn.log_softmax(logits)
        return reduced(-jax.numpy.take_along_axis(log_probs, labels[..., None], -1)[..., 0], mask, case.reduction)

    return loss


def with_a_mask_of_the_table(case, direction):
    return is_shown(case) and case.kept is not None


PROVIDERS = (
    Provider(
        "maskloss", "`jax.jit` of `ml.cross_entropy(logits, labels, mask=mask)`", build_of(maskloss), kind=COMPILED
    ),
    Provider(
        "optax",
        "`jax.jit` of `(softmax_cross_entropy_with_integer_labels(logits, labels) * mask).sum() / mask.sum()`",
        build_of(optax),
        kind=COMPILED,
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
    Provider(
        "optax, where",
        "the same with `where=mask` instead of the product",
        build_of(optax_where),
        applies=with_a_mask_of_the_table,
        runs="the grid's cases that have a mask",
        kind=COMPILED,
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
    Provider(
        "jax.nn",
        "`jax.jit` of `jax.nn.log_softmax`, the label taken, the same mean",
        build_of(jax_nn),
        kind=COMPILED,
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
)


def read(n):
    import jax

    x, function = jax.numpy.ones((max(n // 4096, 1), 4096)), jax.jit(lambda x: x.sum(-1))
    return lambda: function(x).block_until_ready()


def write(n):
    """Into the memory of its own argument, which is donated."""
    import jax

    held = [jax.numpy.ones(max(n, 1), "float32")]
    function = jax.jit(lambda x: jax.numpy.full_like(x, 2.0), donate_argnums=0, keep_unused=True)

    def fill():
        held[0] = function(held[0]).block_until_ready()

    return fill


BANDWIDTH = "`x.sum(-1)` of 4096 columns under jit; `jnp.full_like` under jit into a donated array"


def allocated(provider, case, x, direction):
    """Bytes beyond the arguments that XLA plans for a call: its temporaries and its results."""
    (forward, backward), arguments = jitted(provider.build.loss(case), case, x)
    planned = (forward if direction == "forward" else backward).lower(*arguments).compile().memory_analysis()
    return planned.temp_size_in_bytes + planned.output_size_in_bytes


def tiny(given):
    import jax
    import jax.numpy as jnp

    import maskloss as ml

    logits, labels = jnp.asarray(given.logits), jnp.asarray(given.labels)

    def raw(x, labels):
        return (jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, labels[:, None], -1)[:, 0]).mean()

    def called(function):
        return lambda: jax.block_until_ready(function(logits, labels))

    pairs = {}
    for name, jit in (("jax, jit", jax.jit), ("jax, not jitted", lambda f: f)):
        pairs[name] = [
            tuple(called(jit(way(f))) for f in (lambda x, y: ml.cross_entropy(x, y), raw))
            for way in (lambda f: f, jax.value_and_grad)
        ]
    return pairs


def warm_compiler():
    import jax

    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
