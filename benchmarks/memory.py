"""The peak of resident memory during one call, from Linux's own count."""

import gc
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field):
    """Bytes of VmRSS (now) or VmHWM (the peak since it was last reset)."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def peak_beyond(call):
    """Bytes that the call needs at its peak beyond what was resident before, its result included; None without /proc.

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
