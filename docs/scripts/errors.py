"""The table of refusals, docs/_generated/errors.md, from the bad calls that the tests make.

python docs/scripts/errors.py --write
python docs/scripts/errors.py --check    # exit 1 where the file is not what the calls raise now
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, arguments, outdated, table
from tests import backends, bad_calls

WRITTEN = GENERATED / "errors.md"
ASKED = ("numpy", "torch", "jax", "strict")  # the first that has the call is the one shown
HEADER = """\
Every call here is made by the tests, on every backend that has it; the table shows NumPy's, or where NumPy has none,
that of the first library that has. Arguments not shown are good: logits of shape (2, 3), labels of shape (2,). Calls
with the message of an earlier row are left out.

"""


def shown(value, backend):
    """An argument as the reader would write it."""
    if value is None or isinstance(value, str | bool | int | float | tuple | list):
        return text if len(text := repr(value)) <= 60 else text[:20] + "…"
    library, kind = backends.library(value), type(value).__name__
    if kind not in ("ndarray", "Tensor", "ArrayImpl", "Array"):
        return f"<{library} {kind}>"
    dtype = backends.dtype_name(value) or str(value.dtype)
    prefix = "" if library == backend.library else f"{library}."
    if library == "torch" and (value.is_nested or value.is_sparse or value.is_quantized):
        return f"<{dtype} tensor>"
    shape = tuple(value.shape)
    if len(shape) > 1 or library == "array_api_strict" or str(getattr(value, "device", "")) == "meta":
        return f"<{dtype} of shape {shape}>"
    return f"{prefix}array({value.tolist()}, {dtype})"


def backend_of(call):
    names = [name for name in ASKED if bad_calls.runs_on(call, backends.BACKENDS[name])]
    return backends.BACKENDS[names[0]]


def row(call):
    """The cells of one call."""
    backend = backend_of(call)
    with backends.settings(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of nested and quantized tensors
        given = call.arguments(backend)
        options = [shown(given[n], backend) if n == "*" else f"{n}={shown(given[n], backend)}" for n in call.changed]
        try:
            bad_calls.make(call, backend)
        except Exception as error:
            kind, message = type(error).__name__, " ".join(str(error).split())
        else:
            raise AssertionError(f"{call.name} is not refused on {backend.name}")
    function = call.function if "(" in call.function else f"{call.function}(…, {', '.join(options)})"
    return call.name, f"`{function}`", bad_calls.NAMES[backend.library], kind, message


def render(calls=bad_calls.CALLS):
    rows = {}
    for cells in map(row, calls):
        rows.setdefault(cells[-1], cells)
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in rows.values()]
    return HEADER + table(["what", "call", "library", "raises", "message"], escaped)


def main(given=None, written=WRITTEN, calls=bad_calls.CALLS):
    parser, _ = arguments(__doc__)
    text = render(calls)
    if parser.parse_args(given).check:
        if outdated({written: text}):
            print(f"{written.name} is stale: run docs/scripts/errors.py --write")
            return 1
        print(f"{len(calls)} refusals as written")
        return 0
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
