"""Threads beside the caller's, for work that holds no lock of Python's; and how many the process may use.

They are kept, since to start one takes longer than to hand it a block, and are daemons that wait at a queue: no end of
the interpreter waits for them. The caller works as well, and waits for what has begun and nothing else: neither a loss
within a loss, in a signal's handler say, nor many callers at once can block each other.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue  # whose put may be interrupted by another
from threading import Thread

from .._arguments import fail

ASKED = "MASKLOSS_NUM_THREADS"
# What is left to begin, one each, and where its end, or what it raised, is told.
Task = tuple["deque[Callable[[], None]]", "SimpleQueue[BaseException | None]"]

_tasks: SimpleQueue[Task] = SimpleQueue()
_helpers: list[Thread] = []


def forget() -> None:
    global _tasks, _helpers
    _tasks, _helpers = SimpleQueue(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)  # where none of the threads is


def number() -> int:
    """As many threads as the process may use; the environment is read each time."""
    asked = os.environ.get(ASKED)
    if asked is not None:
        if not asked.isdecimal() or not int(asked):
            fail(ValueError, ASKED, repr(asked), "it must be a positive integer, or not set")
        return int(asked)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(min(here, granted()))
    outer = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the first level's of a list
    return min(here, int(outer)) if outer.isdecimal() and int(outer) else here


@functools.cache
def granted(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """Processors that the process' control groups grant it the time of, of version 2 or 1."""
    least = math.inf
    for folder in folders(groups, root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # no such file; and "max" is no number
                quota, period = (int(word) for name in names for word in text_of(f"{folder}/{name}").split())
                least = min(least, math.ceil(quota / period)) if quota > 0 else least
    return least


def folders(groups: str, root: str) -> Iterator[str]:
    """Of the process' groups and those around them. In a container they are mounted as the root."""
    with suppress(OSError):
        for line in text_of(groups).splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                base = f"{root}/cpu" if controllers else root
                parts = path.strip("/").split("/")
                yield from (base + "/".join(["", *parts[:depth]]) for depth in range(len(parts) + 1))


def text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def beside(work: Callable[[], None], helpers: int) -> None:
    """Calls it here and, in the caller's context, in up to so many threads beside; all have ended when it returns."""
    helpers = at_hand(helpers)
    left: deque[Callable[[], None]] = deque(partial(copy_context().run, work) for _ in range(helpers))
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    try:
        for _ in range(helpers):
            _tasks.put((left, ended))
        work()
    finally:
        begun = helpers
        while left:
            with suppress(IndexError):  # what a helper has just begun
                left.pop()
                begun -= 1
        errors = [error for error in [ended.get() for _ in range(begun)] if error is not None]
    if errors:
        try:
            raise errors[0]
        finally:
            del errors  # of this frame, which the error holds, and what it holds


def at_hand(wanted: int) -> int:
    while len(_helpers) < wanted:
        thread = Thread(target=serve, args=(_tasks,), name="maskloss", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for more, or the interpreter is about to end
            break
        _helpers.append(thread)
    return min(wanted, len(_helpers))


def serve(tasks: SimpleQueue[Task]) -> None:
    while True:
        left, ended = tasks.get()
        with suppress(IndexError):  # the caller was ready first
            # Told when nothing here holds the caller's arrays any more.
            ended.put(raised_by(left.popleft()))


def raised_by(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None
