"""What is measured in PyTorch on a GPU: loss and gradients, beside the kernels of others. A trial runs on the CPU."""

import importlib
import os

import torch

from .library import COMPARED, Library
from .on_torch import Torch, compiled, eager, maskloss, native, native_kept_rows, runs
from .timing import fastest, sample

COLD = 1 << 28  # bytes written to empty the cache


def by_themselves(loss, inputs, upstream):
    return torch.autograd.grad(loss, inputs, upstream)


def analytic(case):
    return maskloss(case, implementation="analytic")


def triton(case):
    return maskloss(case, implementation="triton")


def peer(module, of_logits, of_projection):
    """The builder of another package: the names of its functions of (*inputs, ignored), None where it has none."""

    def build(case, x):
        function = getattr(importlib.import_module(module), of_projection if case.features else of_logits)

        def loss(*given):
            *inputs, _, _, ignored = given
            found = function(*inputs, ignored)
            return found[0] if isinstance(found, tuple) else found

        # liger-kernel writes the gradient over the inputs that it is given: each of these has its own.
        own = tuple(leaf.detach().clone().requires_grad_() for leaf in x.inputs)
        return runs(loss, case, x._replace(inputs=own), by_themselves)

    return build


ON_DEVICE = {
    "maskloss": eager(maskloss, by_themselves),
    'maskloss, implementation="analytic"': eager(analytic, by_themselves),
    "F.cross_entropy": eager(native, by_themselves),
    "F.cross_entropy, kept rows": eager(native_kept_rows, by_themselves),
    "F.cross_entropy, torch.compile": compiled(native, by_themselves),
    "maskloss, torch.compile": compiled(maskloss, by_themselves),
    'maskloss, torch.compile, "triton"': compiled(triton, by_themselves),
    "liger_kernel": peer(
        "liger_kernel.transformers.functional", "liger_cross_entropy", "liger_fused_linear_cross_entropy"
    ),
    "cut_cross_entropy": peer("cut_cross_entropy", None, "linear_cross_entropy"),
    "quack": peer("quack.cross_entropy", "cross_entropy", None),
}


class TorchOnDevice(Torch):
    builders = ON_DEVICE
    read = Library.read

    def start(self, device):
        if device == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"

    def arrays(self, case, given, device):
        self.stride = max(1, case.rows // COMPARED)
        return super().arrays(case, given, device)

    def timer(self, case, device):
        """The device's own events; with a cold cache one span of time around each call, else one around all."""
        if device == "cpu":
            return sample
        flushed = torch.empty(COLD, dtype=torch.uint8, device=device) if case.cold else None

        def take(call, repeats):
            count, calls = (repeats, 1) if case.cold else (1, repeats)
            spans = []
            for _ in range(count):
                if case.cold:
                    flushed.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(calls):
                    call()
                end.record()
                spans.append((start, end))
            torch.cuda.synchronize(device)
            return sum(start.elapsed_time(end) for start, end in spans) / repeats / 1e3

        return take

    def speeds(self, case, device, take):
        """Of a large copy, both ways counted; of a product of bfloat16."""
        size, side = (1 << 28, 8192) if device == "cuda" else (1 << 20, 128)
        if case.features:
            x, y = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
            return {"operations": 2 * side**3 / fastest(lambda: x @ y, take, least=5)}
        a, b = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
        rate = 2 * size / fastest(lambda: b.copy_(a), take, least=5)
        return {"read": rate, "write": rate}

    def beside_times(self, call):
        """Bytes at the allocator's peak beyond what was there; the gradients are among them."""
        if not torch.cuda.is_available():
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
