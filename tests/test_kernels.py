"""The Triton kernels beyond the matrix: what they refuse, one row's independence of the others, and far offsets."""

import importlib
import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import maskloss as ml
from tests.backends import BACKENDS, named

OPTIONS = ({}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0})


@pytest.fixture
def torch(backend):
    if "triton" not in backend.modes:
        pytest.skip("for the Triton kernels")
    return importlib.import_module("torch")


@pytest.fixture
def by_default(torch, monkeypatch):
    """The kernels are the default, as they are on a GPU."""
    of_torch = importlib.import_module("maskloss._arrays.torch").Torch
    monkeypatch.setattr(of_torch, "prefers_kernels", lambda xp, x: xp.takes_kernels(x) and not xp.is_tracer(x))


def loss_and_gradient(torch, logits, labels, **options):
    logits = logits.detach().requires_grad_()
    loss = ml.cross_entropy(logits, labels, reduction="none", implementation="triton", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def rows(torch, backend, count=6, classes=37):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(count, classes)) * 4).to(device=backend.device, dtype=torch.float32)
    return logits, torch.from_numpy(rng.integers(0, classes, count)).to(backend.device)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_does_not_depend_on_the_others(backend, torch, options):
    """Bit for bit: in any batch, order and run, beside rows that are not kept, and through any strides."""
    logits, labels = rows(torch, backend)
    loss, gradient = loss_and_gradient(torch, logits, labels, **options)
    again = loss_and_gradient(torch, logits, labels, **options)
    assert same_bits(loss, again[0])
    assert same_bits(gradient, again[1])
    order = [4, 0, 5]
    few = loss_and_gradient(torch, logits[order], labels[order], **options)
    mask = torch.tensor([row in order for row in range(6)], device=backend.device)
    garbage = torch.where(mask[:, None], logits, float("nan"))
    kept = loss_and_gradient(torch, garbage, labels, mask=mask, **options)
    strided = loss_and_gradient(torch, logits.T.contiguous().T, labels, **options)
    for whole, part, masked, other in zip((loss, gradient), few, kept, strided, strict=True):
        assert same_bits(whole[order], part)
        assert same_bits(torch.where(mask.view(-1, *[1] * (whole.ndim - 1)), whole, 0.0), masked)
        assert same_bits(whole, other.contiguous())


@pytest.mark.parametrize(("masked", "implementation"), [(False, "triton"), (True, "triton"), (True, None)])
def test_compiled(backend, torch, by_default, monkeypatch, masked, implementation):
    """An operator for torch.compile: the same bits, as the kernels' order of sums is their own."""
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.torch"), "LEAST_SKIPPED", 1)
    logits, labels = rows(torch, backend)
    options = {"mask": labels % 3 > 0} if masked else {}
    leaf = logits.requires_grad_()

    def loss(x, implementation):
        options["implementation"] = implementation
        return ml.cross_entropy(x, labels, z_loss=0.1, reduction="none", **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ways = (compiled, implementation), (loss, "triton")
    found = [(f(leaf, name), torch.autograd.grad(f(leaf, name).sum(), leaf)[0]) for f, name in ways]
    for a, b in zip(*found, strict=True):
        assert same_bits(a.detach(), b.detach())


def test_a_compiled_linear_loss(backend, torch, by_default):
    """Its operator runs the kernels on its chunks, as the default does that is not compiled."""
    logits, labels = rows(torch, backend)
    eye = torch.eye(37, device=backend.device)
    leaf = logits.requires_grad_()

    def loss(x, implementation=None):
        return ml.linear_cross_entropy(x, eye, labels, mask=labels > 3, chunk_size=2, implementation=implementation)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = [
        (f(leaf, name), torch.autograd.grad(f(leaf, name), leaf)[0]) for f, name in ((compiled, None), (loss, "triton"))
    ]
    for a, b in zip(*found, strict=True):
        assert same_bits(a.detach(), b.detach())


def test_offsets_of_more_than_32_bits(backend, torch):
    """Three rows 2**30 elements apart; of the memory between them none is touched."""
    logits, labels = rows(torch, backend, 3, 9)
    far = torch.empty(2**31 + 9, dtype=torch.float16, device=backend.device).as_strided((3, 9), (2**30, 1))
    far.copy_(logits)
    for strided in (far, far.unsqueeze(0).expand(2, 3, 9)):
        near = strided.clone(memory_format=torch.contiguous_format)
        targets = labels.expand(strided.shape[:-1])
        for a, b in zip(*(loss_and_gradient(torch, x, targets) for x in (strided, near)), strict=True):
            assert same_bits(a, b.contiguous())


def test_equal_blocks_add_up(backend, torch, monkeypatch):
    """1024 blocks of 64 terms of exp(-12) beside one of 1: a running total in float32 rounds each sum, and alike.

    lse - x_y = log(1 + t) with t = 65535 exp(-12) = 0.4: within a block its terms may be added in 8 running sums, whose
    8 + 3 roundings of 2**-24 are 2e-7 of 1 + t; the other roundings are half a last place of t and of the loss.
    """
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.launches"), "MOST", 64)
    logits = torch.zeros(1, 65536, device=backend.device)
    logits[0, 0] = 12.0
    loss, gradient = loss_and_gradient(torch, logits, torch.zeros(1, dtype=torch.int64, device=backend.device))
    true = np.log1p(65535 * np.exp(-12.0))
    assert abs(loss.item() - true) <= 2.0**-22
    assert abs(gradient[0, 0].item() - np.expm1(-true)) <= 2.0**-22


def test_second_derivative(backend, torch):
    """The backward of the kernels can be differentiated: it is then the plain expression."""
    logits, labels = rows(torch, backend)

    def twice(implementation):
        x = logits.clone().requires_grad_()
        loss = ml.cross_entropy(x, labels, implementation=implementation)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), x)[0]

    torch.testing.assert_close(twice("triton"), twice("autodiff"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_reproducible_has_the_engine_s_bits(backend, torch, monkeypatch, masked, reduction):
    """In blocks of 16 classes: numbers that are subnormal, -inf, inf and NaN, and z_loss, which weighs lse."""
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.launches"), "MOST", 16)
    logits, labels = rows(torch, backend, 9)
    logits = logits * 12
    logits[0, 2], logits[1, 5], logits[2, 7], logits[3, :] = -np.inf, np.inf, np.nan, -np.inf
    mask = (torch.arange(9, device=backend.device) % 4 > 0) if masked else None
    found = []
    for implementation in ("triton", "analytic"):
        x = logits.detach().requires_grad_()
        loss, stats = ml.cross_entropy(
            x,
            labels,
            mask=mask,
            z_loss=0.1,
            reduction=reduction,
            with_stats=True,
            reproducible=True,
            implementation=implementation,
        )
        found.append((loss.detach(), *stats, torch.autograd.grad(loss.sum(), x)[0]))
    for a, b in zip(*found, strict=True):
        a, b = (x.detach().nan_to_num(7.0) if x.is_floating_point() else x for x in (a, b))
        assert same_bits(a, b)


def test_refuses_what_it_does_not_cover(backend, torch):
    logits, labels = rows(torch, backend, 2, 3)
    exists = torch.ones(2, 3, dtype=torch.bool, device=backend.device)
    for x, y, options in (
        (logits, logits.softmax(-1), {}),
        (logits.double(), labels, {}),
        (logits, labels, {"class_mask": exists}),
        (logits, labels, {"label_smoothing": 1.0}),
    ):
        with pytest.raises(ValueError, match="implementation is 'triton'; its kernels cover class indices without"):
            ml.cross_entropy(x, y, implementation="triton", **options)
    for options in ({"softcap": 3.0}, {"label_smoothing": 0.1}, {"class_mask": exists}):
        with pytest.raises(
            ValueError, match="is 'triton'; with reproducible=True its kernels cover class indices without"
        ):
            ml.cross_entropy(logits, labels, reproducible=True, implementation="triton", **options)
    with pytest.raises(ValueError, match="its kernels cover"):
        ml.linear_cross_entropy(logits.double(), logits.double(), labels, implementation="triton")


def test_no_rows(backend, torch):
    logits, labels = rows(torch, backend, 0, 3)
    loss, gradient = loss_and_gradient(torch, logits, labels)
    assert loss.shape == (0,)
    assert gradient.shape == (0, 3)


SIZES = ("row_stride", "class_stride", "d_row_stride", "d_class_stride", "classes", "count")
PLANE = ("plane", "plane_stride", "d_plane_stride")
CONSTANTS = {"BLOCK": 4096, "ROWS": 1, **dict.fromkeys(PLANE)}
IN_PLANES = {"BLOCK": 16, "ROWS": 256, "starts": None, "row_stride": 1, "d_row_stride": 1}
ARGUMENTS = {"starts": "*i64", "labels": "*i64", "keep": "*i1", "softcap": "fp32", "share": "fp32", "divisor": "*i64"}
IN_DOUBLE = dict.fromkeys(("nll", "lse", "shift", "g_nll", "g_lse", "scale", "at_labels"), "*fp64") | {"total": "*i64"}
ALWAYS = ("logits", "labels", "nll", "total", "shift", "g_nll", "d_logits", "share", "factor", *SIZES)
OF_MODULE = {"kernels": {}, "reproducible_kernels": IN_DOUBLE}
KERNELS = [(module, name) for module in OF_MODULE for name in ("forward", "backward")]
KERNELS += [("kernels", "loss_and_gradient"), ("kernels", "scale"), ("reproducible_kernels", "rows")]


@pytest.mark.parametrize(
    ("dtype", "every"), [("fp32", False), ("bf16", True), ("fp16", True)], ids=["plain", "every argument", "fp16"]
)
@pytest.mark.parametrize("sizes", ["i32", "i64", "as launched", "in planes"])
@pytest.mark.parametrize(("module", "name"), KERNELS)
def test_compiles_for_a_gpu_without_one(backend, module, name, sizes, every, dtype):
    """To machine code of compute capability 9.0, with no multiplication and addition contracted."""
    if backend is not BACKENDS["torch"] or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("for torch, without the interpreter")
    triton = pytest.importorskip("triton")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    kernel = getattr(importlib.import_module(f"maskloss._bindings.{module}"), f"{name}_kernel")
    always = (*ALWAYS, *PLANE, *(n for n in OF_MODULE[module] if n != "g_lse"))
    constant = dict(IN_PLANES if sizes == "in planes" else CONSTANTS)
    constant |= {"ROWS": 128} if name == "rows" else {}
    given = [n for n in kernel.arg_names if n not in constant and (every or n in always)]
    signature = {n: (ARGUMENTS | OF_MODULE[module]).get(n, "*fp32") for n in given}
    signature |= dict.fromkeys(("logits", "d_logits"), f"*{dtype}")
    signature |= dict.fromkeys((*SIZES, *PLANE), "i64" if sizes == "i64" else "i32")
    signature = {n: signature[n] if n in given else "constexpr" for n in kernel.arg_names}
    constants = {(i,): constant.get(n) for i, n in enumerate(kernel.arg_names) if n not in given}
    attributes = {}
    if sizes == "as launched":  # on classes side by side, of an even number: Triton makes a constant of a stride of 1
        for name in {"class_stride", "d_class_stride"} & {*given}:
            signature[name], constants[kernel.arg_names.index(name),] = "constexpr", 1
        even = [n for n in given if signature[n].startswith("*") or n in ("row_stride", "d_row_stride", "classes")]
        attributes = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in even}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=target, options={"num_warps": 8, "enable_fp_fusion": False})
    assert made.asm["cubin"]
    # The logarithm of float64 is the compiler's own, in such steps.
    assert ("fma.rn.f32" if module == "kernels" else "fma.rn.f") not in made.asm["ptx"]


def test_a_cpu_tensor_needs_the_interpreter(backend):
    named(backend, "torch")
    program = (
        "import torch, maskloss as ml\n"
        "ml.cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), implementation='triton')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "here only ['analytic', 'autodiff'] can run: its kernels take CUDA tensors" in done.stderr


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_over_kept", "mean_over_all"])
@pytest.mark.parametrize("kept", [None, 4, 0])
@pytest.mark.parametrize("axis", [-1, 1])
def test_the_commonest_call(backend, torch, by_default, reduction, kept, axis):
    """One Function from logits to loss: value, gradient and second derivative of the plain expression."""
    logits, labels = rows(torch, backend)
    mask = None if kept is None else torch.arange(6, device=backend.device) < kept
    logits, labels = logits.reshape(2, 3, 37), labels.reshape(2, 3)
    mask = None if mask is None else mask.reshape(2, 3)
    logits = logits if axis == -1 else logits.movedim(-1, axis).contiguous()
    found = []
    for implementation in (None, "autodiff"):
        x = logits.clone().requires_grad_()
        options = {"mask": mask, "reduction": reduction, "axis": axis}
        loss = ml.cross_entropy(x, labels, implementation=implementation, **options)
        assert loss.item() == ml.cross_entropy(x.detach(), labels, implementation=implementation, **options).item()
        assert loss.grad_fn is None or (loss.grad_fn.name() == "_LossBackward") is (implementation is None)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (plain,) = torch.autograd.grad(3 * loss, x, retain_graph=True)
        found.append((loss, gradient, plain, torch.autograd.grad((gradient**2).sum(), x)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_the_gradient_made_with_the_loss(backend, torch, by_default, dtype, axis):
    """Is of one backward alone, which may write to it; times what the loss is multiplied by, and 0 times infinity is 0
    where nothing is kept."""
    logits, labels = rows(torch, backend, 6, 5)
    mask = (torch.arange(6, device=backend.device) % 3 > 0).reshape(2, 3)
    shaped = logits.reshape(2, 3, 5).movedim(-1, axis).contiguous().to(getattr(torch, dtype))
    leaf, kept = shaped.requires_grad_(), mask.unsqueeze(axis)
    loss = ml.cross_entropy(leaf, labels.reshape(2, 3), mask=mask, axis=axis)
    p = torch.softmax(logits.to(getattr(torch, dtype)).double(), -1)
    p[torch.arange(6), labels] -= 1
    want = torch.where(kept, p.reshape(2, 3, 5).movedim(-1, axis) / 4, 0.0)
    rtol = 2.0**-20 if dtype == "float32" else 2.0**-9
    for factor in (1.0, 3.0, -0.5):
        (gradient,) = torch.autograd.grad(factor * loss, leaf, retain_graph=True)
        torch.testing.assert_close(gradient.double(), factor * want, rtol=rtol, atol=2.0**-22)
        gradient.fill_(torch.nan)
    loss = ml.cross_entropy(leaf, labels.reshape(2, 3), mask=mask, axis=axis)
    (gradient,) = torch.autograd.grad(torch.inf * loss, leaf)
    assert not (gradient.where(~kept, 0.0) != 0).any()
    assert not (gradient.isfinite() & kept).any()


@pytest.mark.parametrize("again", [False, True])
def test_a_label_that_is_no_class(backend, torch, by_default, again):
    """NaN where it counts, as nothing waits for the device; nothing where it does not. No other row has NaN."""
    logits, labels = rows(torch, backend)
    labels[1], labels[4] = 37, -1
    for mask, wrong in ((labels == labels, [1, 4]), (torch.arange(6, device=backend.device) != 4, [1])):
        x = logits.clone().requires_grad_()
        loss = ml.cross_entropy(x, labels, mask=mask)
        assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=again)
        is_nan = gradient.detach().isnan()
        assert is_nan.all(-1).nonzero().reshape(-1).tolist() == is_nan.any(-1).nonzero().reshape(-1).tolist() == wrong
    mask = (labels >= 0) & (labels < 37)
    assert ml.cross_entropy(logits, labels, mask=mask).isfinite()


@pytest.mark.parametrize(
    ("changed", "prefers"),
    [
        ({}, True),
        ({"capability": (7, 5)}, False),
        ({"hip": "6.0"}, False),
        ({"triton": None}, False),
        ({"cc": None}, False),
    ],
    ids=["all there", "an old GPU", "AMD", "no Triton", "no C compiler"],
)
def test_where_the_kernels_are_the_default(backend, monkeypatch, changed, prefers):
    """Whatever they lack, the engine runs in their place: nothing is found out by an error."""
    if backend is not BACKENDS["torch"]:
        pytest.skip("for torch")
    torch, of_torch = importlib.import_module("torch"), importlib.import_module("maskloss._arrays.torch")
    there = {"capability": (9, 0), "hip": None, "triton": "a spec", "cc": "/usr/bin/gcc"} | changed
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(of_torch, "which", lambda name: there["cc"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there["triton"])
    monkeypatch.setattr(torch.version, "hip", there["hip"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: there["capability"])
    assert of_torch.runs_kernels.__wrapped__(0) is prefers


@pytest.fixture
def small_planes(torch, monkeypatch):
    """Programs of four rows and two classes: several in a plane, the last of them beyond its end."""
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.launches"), "LEAST_PLANE", 2)
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.launches"), "MOST_ROWS", 4)
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.launches"), "FEW", 2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_planes(backend, torch, small_planes, options, masked):
    """Of images, (N, C, H, W), and a slice of some: each row's numbers are close to those of the row alone."""
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(4 * rng.normal(size=(3, 9, 2, 7))).to(backend.device, torch.float32)
    labels = torch.from_numpy(rng.integers(0, 5, (3, 2, 7))).to(backend.device)
    for images in (whole[:, :5].contiguous(), whole[:, 2:7], whole[1:, :5, :1].expand(2, 5, 2, 7)):
        entries, found = labels[: len(images)], []
        mask = entries > 0 if masked else None
        for axis, x in ((1, images.detach()), (-1, images.movedim(1, -1).contiguous())):
            leaf, given = x.requires_grad_(), {"axis": axis, "mask": mask, **options}
            loss = ml.cross_entropy(leaf, entries, reduction="none", implementation="triton", **given)
            found.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0].movedim(axis, -1)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2.0**-20, atol=2.0**-22)  # p - 1 of a p with two roundings


def test_planes_do_not_read_what_is_not_kept(backend, torch, small_planes):
    logits = torch.full((1, 3, 8), float("nan"), device=backend.device)
    logits[:, :, ::3] = 1.0
    leaf, mask = logits.requires_grad_(), torch.arange(8, device=backend.device).unsqueeze(0) % 3 == 0
    loss = ml.cross_entropy(leaf, mask * 2, axis=1, mask=mask, implementation="triton")
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(loss.item(), math.log(3))
    thirds = torch.tensor([1 / 3, 1 / 3, -2 / 3], device=backend.device).reshape(1, 3, 1) / 3
    torch.testing.assert_close(gradient, torch.where(mask.unsqueeze(1), thirds, 0.0))
    assert gradient.is_contiguous()
