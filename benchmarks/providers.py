"""Who is measured in which setting, as data, with the page's words; what computes it has the same name in on_*.py."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from .cases import BERT, FORWARD, NARROW, SMALL, Case, is_shown

OURS = "maskloss"
GROUPS = ("torch", "jax", "numpy")
TITLES = {"torch": "PyTorch", "jax": "JAX under jit", "numpy": "NumPy", "cupy": "CuPy"}
PEER = {"torch": "F.cross_entropy", "jax": "optax", "numpy": "scipy"}
PEER_OF_LINEAR = {"torch": "F.linear + F.cross_entropy", "jax": "optax on hidden @ kernel.T"}


class Where(NamedTuple):
    words: str
    applies: Callable  # of case and direction


def shown_as(*shapes):
    return lambda case, direction: is_shown(case) and case[:2] in shapes


EVERYWHERE = Where("every case", lambda case, direction: True)
GRID_WITH_A_MASK = Where("the grid's cases that have a mask", lambda c, direction: is_shown(c) and c.kept is not None)
MASKED = Where(
    'where a mask is given, and the reduction is "mean"',
    lambda case, direction: case.kept is not None and case.reduction == "mean",
)
UNMASKED = Where("where no mask is given", lambda case, direction: case.kept is None)


class Provider(NamedTuple):
    name: str
    call: str = ""
    where: Where = EVERYWHERE
    # (dtype or None for any, kept or None for any, tolerances of value and gradient or None: not compared, why)
    exceptions: tuple = ()
    compiled: bool = False


class Group(NamedTuple):
    library: str  # the module, and its class
    packages: tuple
    providers: tuple
    bandwidth: str = ""  # what it is measured with


NOTHING_KEPT = (None, 0, None, "0/0 where nothing is kept")
NO_LOSS = (None, None, None, "the products alone, and no loss")
ROUNDED = "log-probabilities are rounded to bfloat16, and so is the loss"
IN_TORCH = (NOTHING_KEPT, ("bfloat16", None, (1e-2, 5e-2), ROUNDED))
IN_JAX = (NOTHING_KEPT, ("bfloat16", None, (1e-2, 5e-2), "computed in bfloat16, but for what XLA fuses into float32"))
ON_DEVICE = (("bfloat16", None, (2e-2, 5e-2), ROUNDED),)


def exception_of(provider, case):
    """((tolerances of value and gradient) or None where it is not compared, why), or None."""
    for dtype, kept, tolerance, why in provider.exceptions:
        if dtype in (None, case.dtype) and kept in (None, case.kept):
            return tolerance, why
    return None


COMPILED = "`torch.compile(..., dynamic=False)` of {}"
IGNORED = "`F.cross_entropy(logits, labels, ignore_index=-100)`, labels of -100 where masked"
KERAS = "`SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)`, Keras on torch"
OPTAX = "`jax.jit` of `(softmax_cross_entropy_with_integer_labels(logits, labels) * mask).sum() / mask.sum()`"
LOG_SOFTMAX = "`jax.jit` of `jax.nn.log_softmax`, the label taken, the same mean"
FEW = Where("the grid's cases of 256 × 1000 and 8192 × 32: it is slow", shown_as(SMALL, NARROW))
IN_THE_GRID = Where("the grid's cases: a compilation takes seconds", lambda case, direction: is_shown(case))
TORCH = (
    Provider(OURS, "`ml.cross_entropy(logits, labels, mask=mask)`"),
    Provider("F.cross_entropy", IGNORED, EVERYWHERE, IN_TORCH),
    Provider("F.cross_entropy, kept rows", "`F.cross_entropy(logits[mask], labels[mask])`", MASKED, IN_TORCH),
    Provider("F.cross_entropy, torch.compile", COMPILED.format("F.cross_entropy"), IN_THE_GRID, IN_TORCH, True),
    Provider("maskloss, torch.compile", COMPILED.format("ml.cross_entropy"), IN_THE_GRID, compiled=True),
    Provider("Keras", KERAS, FEW),
)
JAX = (
    Provider(OURS, "`jax.jit` of `ml.cross_entropy(logits, labels, mask=mask)`", compiled=True),
    Provider("optax", OPTAX, EVERYWHERE, IN_JAX, True),
    Provider("optax, where", "the same with `where=mask` instead of the product", GRID_WITH_A_MASK, IN_JAX, True),
    Provider("jax.nn", LOG_SOFTMAX, EVERYWHERE, IN_JAX, True),
)


def scalar(case, direction):
    """value_and_grad differentiates a scalar, and has no upstream gradient."""
    return direction == FORWARD or case.reduction == "mean"


BOTH_CALLS = "`ml.cross_entropy(logits, labels, mask=mask)`; `ml.value_and_grad(ml.cross_entropy)`"
SCIPY = "`scipy.special.log_softmax`, the label taken, masked mean; gradient: its exp in place, minus one-hot"
LOGSUMEXP = "`scipy.special.logsumexp` less the label's logit; gradient: exp(logits - lse), minus one-hot"
WITH_A_GRADIENT = Where('every case; with reduction "none" forward alone', scalar)
CAST = Where('every case (bfloat16 cast to float32 and back); with reduction "none" forward alone', scalar)
ALL_BUT_ONE = Where("the grid's cases but 512 × 128256", shown_as(BERT, SMALL, NARROW))
FORWARD_ALONE = Where(
    "the grid's cases of 256 × 1000 and 8192 × 32, forward: it is slow, and has no gradient",
    lambda case, direction: FEW.applies(case, direction) and direction == FORWARD,
)
NUMPY = (
    Provider(OURS, BOTH_CALLS, WITH_A_GRADIENT),
    Provider("scipy", SCIPY, CAST, (NOTHING_KEPT,)),
    Provider(
        "scipy, kept rows",
        "the same on `logits[mask]`; the gradient written into zeros",
        GRID_WITH_A_MASK,
        (NOTHING_KEPT,),
    ),
    Provider("scipy, logsumexp", LOGSUMEXP, ALL_BUT_ONE),
    Provider(
        "scikit-learn", "`sklearn.metrics.log_loss` of the softmax of the kept rows", FORWARD_ALONE, (NOTHING_KEPT,)
    ),
)
PRODUCTS = Provider("three products", where=UNMASKED, exceptions=(NO_LOSS,))
LINEAR_TORCH = (
    Provider(OURS),
    Provider(PEER_OF_LINEAR["torch"]),
    Provider("the same, kept rows", where=MASKED),
    Provider("the same, torch.compile", compiled=True),
    Provider("maskloss, torch.compile", compiled=True),
    Provider("F.linear_cross_entropy"),
    Provider("F.linear_cross_entropy, chunked"),
    PRODUCTS,
)
LINEAR_JAX = (Provider(OURS), Provider(PEER_OF_LINEAR["jax"]), PRODUCTS)


def installed(package, *, logits=True, projections=True):
    def applies(case, direction):
        return (projections if case.features else logits) and find_spec(package) is not None

    return Provider(package, where=Where("where it is installed", applies), exceptions=ON_DEVICE)


ONE_SHAPE = Where(
    "8192 × 32000 in bfloat16, and the projection, all and 15 % kept: a compilation takes seconds",
    lambda c, direction: (c.classes == 32000 or bool(c.features)) and c[2:6] == ("bfloat16", c.kept, *Case(1, 1)[4:6]),
)
GPU_TORCH = (
    Provider(OURS),
    Provider('maskloss, implementation="analytic"', where=ONE_SHAPE, exceptions=ON_DEVICE),
    Provider("F.cross_entropy", exceptions=ON_DEVICE),
    Provider("F.cross_entropy, kept rows", where=MASKED, exceptions=ON_DEVICE),
    Provider("F.cross_entropy, torch.compile", where=ONE_SHAPE, exceptions=ON_DEVICE, compiled=True),
    Provider("maskloss, torch.compile", where=ONE_SHAPE, exceptions=ON_DEVICE, compiled=True),
    Provider('maskloss, torch.compile, "triton"', where=ONE_SHAPE, exceptions=ON_DEVICE, compiled=True),
    installed("liger_kernel"),
    installed("cut_cross_entropy", logits=False),
    installed("quack", projections=False),
)
GPU_PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels")
JAX_PACKAGES = ("jax", "jaxlib", "optax")
SETTINGS = {
    "page": {
        "torch": Group("on_torch:Torch", ("torch", "keras"), TORCH, "`x.sum(-1)` of 4096 columns; `x.fill_(0)`"),
        "jax": Group(
            "on_jax:Jax",
            JAX_PACKAGES,
            JAX,
            "`x.sum(-1)` of 4096 columns under jit; `jnp.full_like` under jit into a donated array",
        ),
        "numpy": Group(
            "on_numpy:NumPy",
            ("numpy", "ml_dtypes", "scipy", "scikit-learn"),
            NUMPY,
            "`x.sum(-1)` of 4096 columns; `x.fill(0)`; one thread, as all of NumPy here",
        ),
    },
    "linear": {
        "torch": Group("on_torch:TorchLinear", ("torch", "keras"), LINEAR_TORCH),
        "jax": Group("on_jax:JaxLinear", JAX_PACKAGES, LINEAR_JAX),
    },
    "gpu": {
        "torch": Group("on_cuda:TorchOnDevice", GPU_PACKAGES, GPU_TORCH),
        "jax": Group("on_jax:JaxOnDevice", JAX_PACKAGES, (Provider(OURS), Provider("optax", exceptions=ON_DEVICE))),
        "cupy": Group("on_numpy:CuPy", ("cupy-cuda12x", "cupy-cuda13x"), (Provider(OURS),)),
    },
}
