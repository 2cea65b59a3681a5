"""The support tables of the documentation and of the README, from maskloss._capabilities.

python docs/scripts/capabilities.py --write | --check
"""

import sys
from pathlib import Path

import maskloss
from maskloss import _capabilities

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, ROOT, arguments, marked, outdated, table

FUNCTIONS = tuple(sorted(name for name in maskloss.__all__ if name[0].islower() and name != "value_and_grad"))


def library_name(backend):
    return _capabilities.LIBRARIES[backend.name]


def devices(backend):
    return ", ".join(f"{device}: {backend.verified[device]}" for device in backend.devices)


def summary():
    """One line per library: what the README shows."""
    header = ["", "devices", "gradient", "compiled by", "vmap", "dtypes"]
    rows = []
    for backend in _capabilities.BACKENDS:
        dtypes = [d for d in _capabilities.DTYPES if not _capabilities.reason_missing("*", backend.name, d)]
        halves = {"numpy": "bfloat16 (ml_dtypes)"}.get(backend.name, "bfloat16")
        dtypes = ", ".join(halves if d == "bfloat16" else d for d in dtypes)
        rows.append(
            [
                library_name(backend),
                devices(backend),
                backend.gradient,
                backend.compiled or "no",
                backend.vmap or "no",
                dtypes,
            ]
        )
    return table(header, rows)


def support():
    """Function by library: what works of value, gradient, jit; then the dtypes; then why the rest is missing."""
    reasons = {}

    def note(function, library, capability):
        reason = _capabilities.reason_missing(function, library, capability)
        return reason and f"[^{reasons.setdefault(reason, len(reasons) + 1)}]"

    def works(function, library):
        notes = {what: note(function, library, what) for what in ("gradient", "jit")}
        there = ", ".join(["value", *(what for what, missing in notes.items() if not missing)])
        return " ".join([there, *filter(None, notes.values())])

    libraries = [b.name for b in _capabilities.BACKENDS]
    header = ["", *map(library_name, _capabilities.BACKENDS)]
    rows = [[f"`{function}`", *(works(function, library) for library in libraries)] for function in FUNCTIONS]
    for dtype in _capabilities.DTYPES:
        notes = [note("*", library, dtype) for library in libraries]
        rows.append([dtype, *(f"no {missing}" if missing else "yes" for missing in notes)])
    rows.append(["devices", *map(devices, _capabilities.BACKENDS)])
    return table(header, rows) + "\n" + "".join(f"[^{number}]: {reason}.\n" for reason, number in reasons.items())


def implementations():
    """Which implementation runs by default, and why the others do not."""
    implementations = _capabilities.IMPLEMENTATIONS
    reasons, rows = {}, []
    for backend in _capabilities.BACKENDS:
        for device in (*backend.devices, *(["compiled"] if backend.compiled else [])):
            where, cells = f"{backend.name} {device}", []
            shared = any(where in implementation.first for implementation in implementations.values())
            for implementation in implementations.values():
                missing = implementation.missing
                reason = missing.get(backend.name) or missing.get(where)
                if reason:
                    cells.append(f"no[^{reasons.setdefault(reason, f'implementation-{len(reasons) + 1}')}]")
                elif where in implementation.first:
                    cells.append("the default for what it covers")
                elif cells:
                    cells.append("yes")
                else:
                    cells.append("the default for the rest" if shared else "the default")
            rows.append([f"{library_name(backend)}, {backend.compiled if device == 'compiled' else device}", *cells])
    notes = "".join(f"[^{mark}]: {reason}.\n" for reason, mark in reasons.items())
    summaries = "".join(f"- `{name}`: {implementation.summary}.\n" for name, implementation in implementations.items())
    return summaries + "\n" + table(["", *(f"`{name}`" for name in implementations)], rows) + "\n" + notes


def outputs():
    readme = ROOT / "README.md"
    return {
        GENERATED / "support.md": support(),
        GENERATED / "implementations.md": implementations(),
        readme: marked(readme.read_text(), "support", summary()),
    }


def main():
    parser, _ = arguments(__doc__)
    files = outputs()
    if parser.parse_args().write:
        for path, text in files.items():
            path.write_text(text)
    elif stale := outdated(files):
        sys.exit(f"stale, run python {Path(__file__).name} --write: {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
