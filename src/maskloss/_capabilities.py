"""What works where, as data. Errors, tests and the tables of the documentation are made from this one source."""

from __future__ import annotations

from typing import NamedTuple


class Backend(NamedTuple):
    name: str
    verified: dict[str, str]  # device -> how the claim is known
    gradient: str = "value_and_grad"
    compiled: str | None = None  # how a call is compiled
    vmap: str | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.verified)


class Implementation(NamedTuple):
    summary: str
    missing: dict[str, str]  # library, or library + " compiled" or " cpu" -> why it cannot run there
    first: tuple[str, ...] = ()  # library + device: where it is the default for what it covers


LIBRARIES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy", "array_api_strict": "array-api-strict"}

DTYPES = ("float16", "bfloat16", "float32", "float64")

ON_CPU, ON_GPU = {"cpu": "run"}, "run on a GPU of NVIDIA"
AUTOGRAD, GRAD = "autograd, torch.func, value_and_grad", "jax.grad, jax.jvp, jax.hessian, value_and_grad"
BACKENDS = (
    Backend("numpy", ON_CPU),
    Backend("torch", {**ON_CPU, "cuda": ON_GPU}, AUTOGRAD, "torch.compile", "torch.func.vmap"),
    Backend("jax", {**ON_CPU, "gpu": ON_GPU}, GRAD, "jax.jit", "jax.vmap"),
    Backend("cupy", {"gpu": ON_GPU}),
    Backend("array_api_strict", ON_CPU),
)

NO_AUTODIFF = "the library has no automatic differentiation; ml.value_and_grad covers cross_entropy and its linear form"
NO_TRACER = "the library has no tracer"

VALUE_ONLY = (
    *("label_log_probs", "linear_label_log_probs", "entropy", "linear_entropy", "denominator", "reduce"),
    *("masked_sum", "masked_mean", "masked_var", "masked_std", "masked_max", "masked_min"),
    *("masked_logsumexp", "masked_softmax", "masked_log_softmax"),
)
EAGER = ("numpy", "cupy", "array_api_strict")

# (function or "*", library, capability) -> reason. What is not listed works and is tested.
MISSING = {
    **{(function, library, "gradient"): NO_AUTODIFF for library in EAGER for function in VALUE_ONLY},
    **{("*", library, "jit"): NO_TRACER for library in EAGER},
    ("*", "array_api_strict", "bfloat16"): "the library has no bfloat16",
    ("*", "array_api_strict", "float16"): "the library has no float16",
}

# dtype of the logits, library + device, or kind of function or array -> why there is no reproducible=True.
NOT_REPRODUCIBLE = {
    "float64": "its products need more bits than float64 has; float32, bfloat16 and float16 have such results",
    **dict.fromkeys(("torch mps", "jax tpu", "jax METAL"), "its numbers are of float64, which the device has not"),
    "linear": "the product of hidden and kernel is each library's own, whose bits differ; make the logits, and pass"
    " them to the function without 'linear_'",
    "jax class_shard": "in jax.shard_map it is not supported; outside, logits whose classes lie on several devices are",
    "DTensor": "DTensor's own operations come between; pass this process' part and class_shard, or .full_tensor()",
}

IMPLEMENTATIONS = {
    "analytic": Implementation("the analytic forward and backward pair, on kept rows; keeps two numbers a row", {}),
    "autodiff": Implementation("one array-API expression, differentiated by the framework", {}),
    "triton": Implementation(
        "the analytic pair as Triton kernels, for class indices without class_mask, in float32 and half precision; the"
        " default for what it covers on a GPU of NVIDIA of compute capability 8.0 or more",
        {
            **dict.fromkeys(("numpy", "jax", "cupy", "array_api_strict"), "its kernels take PyTorch tensors"),
            "torch cpu": "its kernels take CUDA tensors (under TRITON_INTERPRET=1, for tests, those of the CPU)",
        },
        ("torch cuda",),
    ),
}


def reason_missing(function: str, library: str, capability: str) -> str | None:
    return MISSING.get((function, library, capability)) or MISSING.get(("*", library, capability))
