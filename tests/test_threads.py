"""The blocks of one loss in several threads: the same bits, whatever goes on beside."""

import functools
import os
import subprocess
import sys
import threading
import warnings
from collections import deque

import numpy as np
import pytest

import maskloss as ml
from maskloss._bindings import numpy as numpy_binding
from maskloss._engine import threads, walk

pytestmark = pytest.mark.of_backend("numpy")
ROWS, CLASSES = 36, 600


class Meeting(deque):
    """The blocks that are left: no thread goes on with its first before each has one."""

    def __init__(self, items):
        super().__init__(items)
        self.barrier, self.met = threading.Barrier(self.count(None)), set()

    def popleft(self):
        item = super().popleft()
        if threading.get_ident() not in self.met:
            self.met.add(threading.get_ident())
            self.barrier.wait(10)
        return item


@pytest.fixture
def asked(monkeypatch):
    """asked(n): small blocks, in n threads that meet."""
    monkeypatch.setattr(walk, "BLOCK_BYTES", 3 * 4 * CLASSES)
    for name in ("LEAST_SHARED", "LEAST_PLANE", "LEAST_ROWS"):
        monkeypatch.setattr(walk, name, 1)
    monkeypatch.setattr(walk, "deque", Meeting)
    monkeypatch.setattr(numpy_binding, "SMALL", 0)
    return lambda number: monkeypatch.setenv(threads.ASKED, str(number))


RNG = np.random.default_rng(0)
X = (3 * RNG.normal(size=(ROWS, CLASSES))).astype(np.float32)
WIDE = np.where(np.arange(ROWS)[:, None] % 7 == 5, X + 60, X)  # out of range: the first of a block's three rows, or not
PLANES = np.ascontiguousarray(np.moveaxis(X.reshape(2, ROWS // 2, CLASSES), 1, -1))
Y, MASK, CLASS_MASK = RNG.integers(0, CLASSES, ROWS), RNG.random(ROWS) < 0.6, RNG.random((ROWS, CLASSES)) < 0.9
CLASS_MASK[np.arange(ROWS), Y] = True
SMOOTH = {"label_smoothing": 0.1, "class_weights": np.linspace(0.5, 2, CLASSES, dtype=np.float32)}
CALLS = {
    "all": ((X, Y), {}),
    "kept": ((X, Y), {"mask": MASK}),
    "halves": ((X.astype(np.float16), Y), {}),
    "some out of range": ((WIDE, Y), {}),
    "planes": ((PLANES, Y.reshape(2, -1)), {"axis": 1}),
    "planes of which some are kept": ((PLANES, Y.reshape(2, -1)), {"axis": 1, "mask": MASK.reshape(2, -1)}),
    "classes that exist": ((X, Y), {"class_mask": CLASS_MASK, "softcap": 30.0, "z_loss": 1e-3}),
    "a distribution": ((X, np.abs(X) / np.abs(X).sum(-1, keepdims=True)), {"mask": MASK}),
    "smoothing": ((X, Y), SMOOTH),
    "reproducible": ((X, Y), {"reproducible": True, "mask": MASK, **SMOOTH}),
}


def numbers(name):
    """Losses of the entries, the mean, and each of its gradients."""
    args, options = CALLS[name]
    names = tuple({"class_weights"} & options.keys()) + ((1,) if args[1].dtype == np.float32 else ())
    with_gradients = ml.value_and_grad(ml.cross_entropy, (0, *names))
    value, gradients = with_gradients(*args, **options)
    return [ml.cross_entropy(*args, **options, reduction="none"), value, *gradients]


def linear():
    hidden, kernel = X[:, :40], np.ascontiguousarray(X[:, 40:80])
    of_linear = functools.partial(ml.linear_cross_entropy, chunk_size=20)
    value, gradients = ml.value_and_grad(of_linear, (0, 1))(hidden, kernel, Y % ROWS)
    return [ml.linear_entropy(hidden, kernel, chunk_size=20), value, *gradients]


@pytest.mark.parametrize("name", [*CALLS, "linear"])
def test_any_number_of_threads_gives_the_same_bits(asked, name):
    found = []
    for number in (1, 2, 3):
        asked(number)
        found.append([x.tobytes() for x in (linear() if name == "linear" else numbers(name))])
    assert found[0] == found[1] == found[2]


def test_each_thread_has_one_block(asked, monkeypatch):
    made, taken_out = [], walk.taken_out

    def counted(*args, **options):
        held = taken_out(*args, **options)
        made.append((threading.get_ident(), held[1].ctypes.data, held[1].nbytes))
        return held

    monkeypatch.setattr(walk, "taken_out", counted)
    asked(3)
    for _ in range(4):
        ml.value_and_grad(ml.cross_entropy)(X, Y)
    assert len({thread for thread, *_ in made}) == len({place for _, place, _ in made}) == 3


def test_an_error_in_a_thread_is_the_caller_s(asked, monkeypatch):
    asked(3)
    expected, block_logits = ml.cross_entropy(X, Y), walk.block_logits

    def fails(*args, **options):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("in a thread")
        return block_logits(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("maskloss._engine.unshifted.block_logits", fails)
        with pytest.raises(MemoryError, match="in a thread"):
            ml.cross_entropy(X, Y)
    assert ml.cross_entropy(X, Y) == expected


def test_what_overflows_warns_in_no_thread(asked):
    """log(600) of equal logits, in some rows of 200, whose exponentials no float32 holds."""
    asked(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = ml.cross_entropy(np.full_like(X, 200.0) * (np.arange(ROWS)[:, None] % 3 == 1), Y)
    assert abs(float(loss) - np.log(CLASSES)) < 8 * 2.0**-24 * np.log(CLASSES)


def test_threads_of_the_caller(asked):
    asked(2)
    expected, found = numbers("kept"), []

    def caller():
        for _ in range(5):
            found.append(numbers("kept"))

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert len(found) == 15
    assert all(np.array_equal(a, b) for one in found for a, b in zip(one, expected, strict=True))


PROGRAM = """
import atexit, collections, os, signal, sys, threading, numpy as np, maskloss as ml
from maskloss._bindings import numpy as numpy_binding
from maskloss._engine import walk
from tests.test_threads import Meeting, X, Y
walk.BLOCK_BYTES, walk.LEAST_SHARED, walk.deque, numpy_binding.SMALL = 9600, 1, Meeting, 0
os.environ["MASKLOSS_NUM_THREADS"] = "3"
loss = ml.cross_entropy(X, Y)
if os.fork() == 0:
    os._exit(int(ml.cross_entropy(X, Y) != loss))  # in threads of its own, or nobody meets
print(os.waitstatus_to_exitcode(os.wait()[1]))
walk.deque = collections.deque  # within a loss there may be no thread to meet, and at the end
inner = []
signal.signal(signal.SIGALRM, lambda *_: inner.append(ml.cross_entropy(X, Y)))
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-3)
while len(inner) < 20:
    assert ml.cross_entropy(X, Y) == loss
signal.setitimer(signal.ITIMER_REAL, 0)
print(all(x == loss for x in inner))
def late():
    print(ml.cross_entropy(X, Y) == loss)
atexit.register(late)
def forever():
    while True:
        ml.cross_entropy(X, Y)
threading.Thread(target=forever, daemon=True).start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_forks_and_is_interrupted_and_ends():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "True", "True"]), done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_no_number_of_threads(monkeypatch, value):
    monkeypatch.setenv(threads.ASKED, value)
    with pytest.raises(
        ValueError, match=f"MASKLOSS_NUM_THREADS is '{value}'; it must be a positive integer, or not set"
    ):
        threads.number()


def test_as_many_threads_as_the_process_may_use(monkeypatch):
    monkeypatch.delenv(threads.ASKED, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "granted", lambda: 6)
    assert threads.number() == 6
    for value, expected in (("3,2", 3), ("16", 6), ("junk", 6), ("0", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads.number() == expected
    monkeypatch.setenv(threads.ASKED, "12")
    assert threads.number() == 12


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a\n", {"cpu.max": "300000 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/outside\n", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/d\n0::/\n", {"cpu/d/cpu.cfs_quota_us": "250000", "cpu/d/cpu.cfs_period_us": "100000"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf),
        ("2:cpuset:/\n", {}, np.inf),
        (None, {}, np.inf),
    ],
)
def test_what_control_groups_grant(tmp_path, groups, files, expected):
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads.granted.__wrapped__(str(tmp_path / "groups"), str(tmp_path)) == expected
