"""Who is measured in which setting, as data, with the page's words; what computes it has the same name in on_*.py."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from .cases import FORWARD, LLAMA, NARROW, SMALL, is_shown

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
COMPILED = Where("the grid's cases: a compilation takes seconds", lambda case, direction: is_shown(case))
MASKED = Where(
    'where a mask is given, and the reduction is "mean"',
    lambda case, direction: case.kept is not None and case.reduction == "mean",
)
UNMASKED = Where("where no mask is given", lambda case, direction: case.kept is None)


class Provider(NamedTuple):
    name: str
    call: str = ""
    where: Where = EVERYWHERE
    compiled: bool = False
    # (dtype or None for any, kept or None for any, tolerances of value and gradient or None: not compared, why)
    exceptions: tuple = ()


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


TORCH = (
    Provider(OURS, "`ml.cross_entropy(logits, labels, mask=mask)`"),
    Provider(
        "F.cross_entropy",
        "`F.cross_entropy(logits, labels, ignore_index=-100)`, labels of -100 where masked",
        exceptions=IN_TORCH,
    ),
    Provider("F.cross_entropy, kept rows", "`F.cross_entropy(logits[mask], labels[mask])`", MASKED, False, IN_TORCH),
    Provider(
        "F.cross_entropy, torch.compile",
        "`torch.compile(..., dynamic=False)` of F.cross_entropy",
        COMPILED,
        True,
        IN_TORCH,
    ),
    Provider("maskloss, torch.compile", "`torch.compile(..., dynamic=False)` of ml.cross_entropy", COMPILED, True),
    Provider(
        "Keras",
        "`SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)`, Keras on torch",
        Where("the grid's cases of 256 × 1000 and 8192 × 32: it is slow", shown_as(SMALL, NARROW)),
    ),
)
JAX = (
    Provider(OURS, "`jax.jit` of `ml.cross_entropy(logits, labels, mask=mask)`", compiled=True),
    Provider(
        "optax",
        "`jax.jit` of `(softmax_cross_entropy_with_integer_labels(logits, labels) * mask).sum() / mask.sum()`",
        compiled=True,
        exceptions=IN_JAX,
    ),
    Provider("optax, where", "the same with `where=mask` instead of the product", GRID_WITH_A_MASK, True, IN_JAX),
    Provider(
        "jax.nn", "`jax.jit` of `jax.nn.log_softmax`, the label taken, the same mean", compiled=True, exceptions=IN_JAX
    ),
)


def scalar(case, direction):
    """value_and_grad differentiates a scalar, and has no upstream gradient."""
    return direction == FORWARD or case.reduction == "mean"


NUMPY = (
    Provider(
        OURS,
        "`ml.cross_entropy(logits, labels, mask=mask)`; `ml.value_and_grad(ml.cross_entropy)`",
        Where('every case; with reduction "none" forward alone', scalar),
    ),
    Provider(
        "scipy",
        "`scipy.special.log_softmax`, the label taken, masked mean; gradient: its exp in place, minus one-hot",
        Where('every case (bfloat16 cast to float32 and back); with reduction "none" forward alone', scalar),
        exceptions=(NOTHING_KEPT,),
    ),
    Provider(
        "scipy, kept rows",
        "the same on `logits[mask]`; the gradient written into zeros",
        GRID_WITH_A_MASK,
        exceptions=(NOTHING_KEPT,),
    ),
    Provider(
        "scipy, logsumexp",
        "`scipy.special.logsumexp` less the label's logit; gradient: exp(logits - lse), minus one-hot",
        Where("the grid's cases but 512 × 128256", lambda c, direction: is_shown(c) and c[:2] != LLAMA),
    ),
    Provider(
        "scikit-learn",
        "`sklearn.metrics.log_loss` of the softmax of the kept rows",
        Where(
            "the grid's cases of 256 × 1000 and 8192 × 32, forward: it is slow, and has no gradient",
            lambda case, direction: shown_as(SMALL, NARROW)(case, direction) and direction == FORWARD,
        ),
        exceptions=(NOTHING_KEPT,),
    ),
)
PRODUCTS = Provider("three products", where=UNMASKED, exceptions=(NO_LOSS,))
LINEAR_TORCH = (
    Provider(OURS),
    Provider(PEER_OF_LINEAR["torch"]),
    Provider("the same, kept rows", where=MASKED),
    Provider("the same, torch.compile", compiled=True),
    Provider("F.linear_cross_entropy"),
    Provider("F.linear_cross_entropy, chunked"),
    PRODUCTS,
)
LINEAR_JAX = (Provider(OURS), Provider(PEER_OF_LINEAR["jax"]), PRODUCTS)


def installed(package, *, logits=True, projections=True):
    def applies(case, direction):
        return (projections if case.features else logits) and find_spec(package) is not None

    return Provider(package, where=Where("where it is installed", applies), exceptions=ON_DEVICE)


GPU_TORCH = (
    Provider(OURS),
    Provider('maskloss, implementation="triton"', exceptions=ON_DEVICE),
    Provider("F.cross_entropy", exceptions=ON_DEVICE),
    Provider("F.cross_entropy, kept rows", where=MASKED, exceptions=ON_DEVICE),
    Provider("F.cross_entropy, torch.compile", compiled=True, exceptions=ON_DEVICE),
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
