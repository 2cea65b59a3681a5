"""The child process of one group: reads what to measure from stdin as JSON, writes a row of JSON for each case.

One process for each library, so that the thread pools of two do not fight; within it, its providers are interleaved.
"""

import gc
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from statistics import median

from agreement import check
from memory import peak_beyond
from provider import exception_of
from timing import SHORT, interleaved, middle, overheads, sample
from workloads import DIRECTIONS, ITEMSIZE, Case, arrays_of, least_bytes, name_of, quick

LARGEST = 2**26  # float32 of the arrays that the bandwidth is measured with: no larger than the logits, nor than this


def rounded(values):
    return [float(f"{v:.4g}") for v in values]


def runs(provider, case, direction, options):
    return provider.applies(case, direction) and (options["compile"] or "torch.compile" not in provider.name)


def bandwidth(group, count):
    """Bytes per second read and written, the best of some: of an array of the logits' size, which a cache may hold."""
    found = []
    for make in (group.read, group.write):
        call = make(count)
        once = max(sample(call, 1) for _ in range(2))
        repeats = max(1, min(1000, round(SHORT / once)))
        found.append(count * 4 / min(sample(call, repeats) for _ in range(5)))
    return found


def checked(group, case, given, built):
    """Raises where a provider's value, with or without a gradient, or its gradient is not the first one's."""
    expected = None
    for provider, (forward, forward_backward) in built:
        exception = exception_of(provider, case)
        if exception and exception[0] is None:
            continue
        answers = []
        if forward_backward:
            answers.append(group.to_numpy(forward_backward()))
        if forward:
            answers.append((group.to_numpy(forward()) * case.upstream, None))
        expected = expected or answers[0]
        for answer in answers:
            check(case, provider.name, answer, expected, given.labels, tolerance=exception and exception[0])


def case_rows(group, named, options):
    """A row for each direction. In a quick run the arrays are smaller than the case's name says."""
    start = time.perf_counter()
    case = quick(named) if options["quick"] else named
    given = arrays_of(case)
    group.before_case()
    x = group.arrays(case, given)
    usable = []
    for p in group.PROVIDERS:
        chosen = [runs(p, named, direction, options) for direction in DIRECTIONS]
        if any(chosen):
            usable.append((p, [call if c else None for c, call in zip(chosen, p.build(case, x), strict=True)]))
    checked(group, case, given, usable)
    size = case.classes * ITEMSIZE[case.dtype]
    reading, writing = bandwidth(group, min(case.rows * size // 4, LARGEST))
    given = given._replace(logits=None)
    for i, direction in enumerate(DIRECTIONS):
        calls = {p.name: pair[i] for p, pair in usable if pair[i]}
        if not calls or (direction == "forward" and case.upstream != 1):
            continue
        seconds = interleaved(calls, limit=options["limit"], fewest=options["fewest"])
        read, written = least_bytes(case, given.mask, direction)
        yield {
            "case": list(named),
            "direction": direction,
            "kept logits": read // ITEMSIZE[case.dtype],
            "floor": float(f"{read / reading + written / writing:.4g}"),
            "GB/s": [round(reading / 1e9, 1), round(writing / 1e9, 1)],
            "took": round(time.perf_counter() - start, 1),
            "seconds": {name: rounded(s) for name, s in seconds.items()},
        }
        start = time.perf_counter()


def cases(group, options):
    for case in (Case(*c) for c in options["cases"]):
        try:
            yield from case_rows(group, case, options)
        except Exception as error:  # the other cases still run; the run fails at its end
            traceback.print_exc()
            yield {"failure": f"{group.NAME}, {name_of(case)}: {type(error).__name__}: {error}"}
        gc.collect()


def one(group, options):
    """The provider, case and callable of a task that is a process of its own."""
    named, direction = Case(*options["case"]), options["direction"]
    case = quick(named) if options["quick"] else named
    (provider,) = [p for p in group.PROVIDERS if p.name == options["provider"]]
    x = group.arrays(case, arrays_of(case))
    return provider, case, x, provider.build(case, x)[DIRECTIONS.index(direction)]


def memory(group, options):
    provider, case, x, call = one(group, options)
    size = case.rows * case.classes * ITEMSIZE[case.dtype]
    if hasattr(group, "allocated"):
        extra, how = group.allocated(provider, case, x, options["direction"]), "planned by XLA"
    else:
        call()
        extra, how = peak_beyond(call), "peak of resident memory"
    extra = None if extra is None else round(extra / size, 4)
    yield {"extra": extra, "how": how, **{key: options[key] for key in ("case", "direction", "provider")}}


def first_call(group, options):
    group.warm_compiler()
    *_, call = one(group, options)
    first = sample(call, 1)
    later = median(sample(call, 1) for _ in range(options["fewest"]))
    yield {"first": rounded([first])[0], "later": rounded([later])[0]} | {
        key: options[key] for key in ("case", "direction", "provider")
    }


def overhead(group, options):
    """Microseconds of a call on 8 x 16 beyond those of the plainest right expression."""
    given = arrays_of(Case(8, 16))
    for name, pairs in group.tiny(given).items():
        for direction, (ours, raw) in zip(DIRECTIONS, pairs, strict=True):
            ours(), raw()
            found = interleaved({"maskloss": ours, "raw": raw}, limit=options["limit"], fewest=options["fewest"])
            yield {
                "backend": name,
                "direction": direction,
                "raw": rounded([1e6 * middle(found["raw"])[0]])[0],
                "overhead": rounded(1e6 * t for t in overheads(found["maskloss"], found["raw"])),
            }


TASKS = {"cases": cases, "memory": memory, "first call": first_call, "overhead": overhead}


def progress(row):
    if "seconds" in row:
        shown = ", ".join(f"{name} {1e3 * middle(s)[0]:.4g} ms" for name, s in row["seconds"].items())
        return f"{name_of(Case(*row['case']))}, {row['direction']}: {shown}; floor {1e3 * row['floor']:.3g} ms"
    return str({key: value for key, value in row.items() if key != "case"})


def main():
    options = json.load(sys.stdin)
    group = importlib.import_module(f"group_{options['group']}")
    group.start()
    with Path(options["output"]).open("w") as file:
        for row in TASKS[options["task"]](group, options):
            print(f"{group.NAME}, {progress(row)}", file=sys.stderr, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
