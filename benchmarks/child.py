"""The process of one library: reads what to measure from stdin as JSON, writes a row of JSON for each case.

One process for each library, so that the thread pools of two do not fight; within it, its providers are interleaved.
"""

import gc
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from statistics import median

from .agreement import check
from .cases import BOTH, DIRECTIONS, FORWARD, Case, arrays_of, kept_rows, least_work, name_of, quick
from .library import library_of
from .providers import exception_of
from .timing import interleaved, middle, overheads, sample


def rounded(values):
    return [float(f"{v:.4g}") for v in values]


def compared(library, case, given, provider, calls, expected):
    """The provider's answer, once it is near what is expected; None where it is known to have none."""
    exception = exception_of(provider, case)
    if exception and exception[0] is None:
        for call in calls.values():
            call()
        return None
    answers = {direction: library.answer(call()) for direction, call in calls.items()}
    if FORWARD in answers:
        answers[FORWARD] = (answers[FORWARD][0] * case.upstream,)
    longest = answers.get(BOTH) or answers[FORWARD]
    labels = given.labels.reshape(-1)[:: library.stride]
    for answer in answers.values():
        check(case, provider.name, answer, expected or longest, labels, tolerance=exception and exception[0])
    return longest


def agreeing(library, case, given, built):
    """name -> its calls, of the providers that answer as the first does; and why each other does not.

    built: provider -> a function that makes its calls, by direction. Without the first nothing can be compared.
    """
    expected, right, failed = None, {}, {}
    for provider, build in built.items():
        try:
            calls = build()
            answer = compared(library, case, given, provider, calls, expected)
        except Exception as error:  # one that cannot run, or is wrong, does not stop the others
            if expected is None:
                raise
            traceback.print_exc()
            failed[provider.name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        expected, right[provider.name] = expected or answer, calls
    return right, failed


def builders(library, named, case, x, options):
    """What `agreeing` is given: of the providers that the case, by its own name, is for."""
    built = {}
    for provider in library.providers:
        directions = [d for d in options["directions"] if provider.where.applies(named, d)]
        if directions and (options["compile"] or "torch.compile" not in provider.name):
            built[provider] = partial(calls_of, library, provider.name, case, x, directions)
    return built


def calls_of(library, name, case, x, directions):
    pairs = zip(DIRECTIONS, library.builders[name](case, x), strict=True)
    calls = {direction: call for direction, call in pairs if call and direction in directions}
    if BOTH in calls and case.read:
        calls[BOTH] = with_reading(library, calls[BOTH])
    return calls


def with_reading(library, call):
    def called():
        result = call()
        for gradient in result[1:]:
            library.read(gradient)
        return result

    return called


def case_rows(library, named, options):
    """A row for each direction. In a quick run the arrays are smaller than the case's name says."""
    start = time.perf_counter()
    case = quick(named) if options["quick"] else named
    given = arrays_of(case)
    library.before_case()
    x = library.arrays(case, given, options["device"])
    right, failed = agreeing(library, case, given, builders(library, named, case, x, options))
    take = library.timer(case, options["device"])
    speeds = library.speeds(case, options["device"], take)
    given = given._replace(inputs=())
    for direction in options["directions"]:
        calls = {name: by_direction[direction] for name, by_direction in right.items() if direction in by_direction}
        if not calls or (direction == FORWARD and case.upstream != 1):
            continue
        seconds = interleaved(calls, limit=options["limit"], fewest=options["fewest"], take=take)
        extra = {name: library.beside_times(call) for name, call in calls.items()}
        yield {
            "case": list(named),
            "direction": direction,
            **floor(case, given.mask, direction, speeds),
            "took": round(time.perf_counter() - start, 1),
            "seconds": {name: rounded(s) for name, s in seconds.items()},
            **({"failed": failed} if failed else {}),
            **({"extra": extra} if any(extra.values()) else {}),
        }
        start = time.perf_counter()


def floor(case, mask, direction, speeds):
    """The time in which the least work could be done, and at what speeds; nothing where these are not known."""
    found = {"kept logits": kept_rows(case, mask) * case.classes}
    if speeds:
        work = least_work(case, mask, direction)
        found["floor"] = rounded([sum(amount / speeds[what] for what, amount in work.items())])[0]
        found["GFLOP/s" if case.features else "GB/s"] = [round(speed / 1e9, 1) for speed in speeds.values()]
    return found


def cases(library, options):
    for case in (Case(*c) for c in options["cases"]):
        try:
            yield from case_rows(library, case, options)
        except Exception as error:  # the other cases still run; the run fails at its end
            traceback.print_exc()
            yield {"failure": f"{name_of(case)}: {type(error).__name__}: {str(error)[:300]}"}
        gc.collect()


def one(library, options, **changes):
    """The callable of a task that is a process of its own."""
    named = Case(*options["case"])._replace(**changes)
    case = quick(named) if options["quick"] else named
    x = library.arrays(case, arrays_of(case), options["device"])
    return library.builders[options["provider"]](case, x)[DIRECTIONS.index(options["direction"])]


def asked(options):
    return {key: options[key] for key in ("case", "direction", "provider")}


def memory(library, options):
    """options["warm"]: of how many rows the call is that is not counted; None: of all."""
    call, few = one(library, options), options["warm"]
    extra = library.peak(call, lambda: (one(library, options, rows=few) if few else call)())
    yield {"bytes": extra, "how": library.memory, **asked(options)}


def first_call(library, options):
    library.warm_compiler()
    call = one(library, options)
    first = sample(call, 1)
    later = median(sample(call, 1) for _ in range(options["fewest"]))
    yield {"first": rounded([first])[0], "later": rounded([later])[0], **asked(options)}


def overhead(library, options):
    """Microseconds of a call on 8 x 16 beyond those of the plainest right expression."""
    for name, pairs in library.tiny(arrays_of(Case(8, 16))).items():
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
        least = f"; floor {1e3 * row['floor']:.3g} ms" if "floor" in row else ""
        return f"{name_of(Case(*row['case']))}, {row['direction']}: {shown}{least}"
    return str({key: value for key, value in row.items() if key != "case"})


def main():
    options = json.load(sys.stdin)
    library = library_of(options["setting"], options["group"])
    library.start(options["device"])
    with Path(options["output"]).open("w") as file:
        for row in TASKS[options["task"]](library, options):
            print(f"{options['group']}, {progress(row)}", file=sys.stderr, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
