"""What is asked of a library in its own process. Its module imports it at once, and so is imported nowhere else."""

import gc
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

from .cases import ITEMSIZE
from .providers import SETTINGS
from .timing import fastest, sample

LARGEST = 2**26  # float32 of the arrays that the bandwidth is measured with: no larger than the logits, nor than this
COMPARED = 256  # rows of a gradient on a device: not gigabytes to the host for each provider
SIDE = 2048  # of the matrices whose product says how fast operations are
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Library:
    """builders: name -> build(case, arrays), which returns forward and forward + backward, called without arguments.

    The first returns the loss, the second (loss, gradient of each input); None is what it does not have.
    """

    builders: Mapping[str, Callable]
    memory = "peak of resident memory"
    stride = 1  # of the rows of gradients that are compared

    def __init__(self, providers=()):
        self.providers = providers

    def start(self, device):
        """Before the library has made its first array."""

    def before_case(self):
        pass

    def arrays(self, case, given, device):
        raise NotImplementedError

    def wide(self, array):
        """In NumPy, as float32 or float64."""
        array = np.asarray(array)
        return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)

    def answer(self, result):
        """The value and the gradients that a provider returned, in NumPy."""
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(self.wide(x[:: self.stride] if np.ndim(x) > 1 else x) for x in parts)

    def timer(self, case, device):
        """take(call, repeats): seconds per call."""
        return sample

    def speeds(self, case, device, take):
        """What a second suffices for of the least work: bytes read and written, or operations. Empty: no floor."""
        if case.features:
            return {"operations": 2 * SIDE**3 / fastest(self.product(SIDE), take, least=3)}
        count = min(case.rows * case.classes * ITEMSIZE[case.dtype] // 4, LARGEST)
        calls = {"read": self.reading(count), "write": self.writing(count)}
        return {what: count * 4 / fastest(call, take) for what, call in calls.items()}

    def peak(self, call, warm):
        """Bytes of one call beyond what was there, its results among them; None where that is not known."""
        warm()
        return peak_beyond(call)

    def read(self, gradient):
        """All of it, where some may be memory that nobody has touched."""

    def beside_times(self, call):
        """The same in the process that takes times, where the library itself counts."""


def resident(field):
    """Bytes of VmRSS (now) or VmHWM (the peak since it was last reset)."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def peak_beyond(call):
    """Bytes of resident memory that the call needs at its peak, by Linux's own count; None without it.

    Pages that the allocator kept from an earlier call are resident before, and do not count; hence one call before
    this, in a process of its own.
    """
    gc.collect()
    try:
        RESET.write_text("5")  # the peak is what is resident now
        before = resident("VmRSS")
    except OSError:
        return None
    result = call()
    peak = resident("VmHWM")
    del result
    return max(peak - before, 0)


def library_of(setting, group):
    group = SETTINGS[setting][group]
    module, _, name = group.library.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), name)(group.providers)
