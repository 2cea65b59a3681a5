"""linear_cross_entropy, forward + backward, beside projection and loss apart; in PyTorch and in JAX.

    python -m benchmarks.linear            # docs/_generated/linear.json
    python -m benchmarks.linear --quick    # a trial of the machinery: small shapes, into build/bench

The floor is 6 * kept * D * V operations, those of three matrix products, at the rate of one large product measured
just before.
"""

import argparse

from .cases import BERT, BOTH, Case
from .harness import ROOT, Result, child, end
from .providers import OURS, PEER_OF_LINEAR, SETTINGS, TITLES
from .tables import beside, provenance, table, times_table

GROUPS = tuple(SETTINGS["linear"])
MODEL, WIDE = Case(*BERT, features=384), Case(1024, 50257, features=768)
CASES = (*(MODEL._replace(kept=kept) for kept in (None, 50, 15)), WIDE, WIDE._replace(kept=15))
SMALL = Case(64, 300, features=8)
MEMORY = (MODEL, MODEL._replace(rows=16384))
MEASURED = {
    "torch": (OURS, PEER_OF_LINEAR["torch"], "F.linear_cross_entropy, chunked"),
    "jax": (OURS, PEER_OF_LINEAR["jax"]),
}
FEW = 64  # rows of the call that makes the libraries' own buffers, before memory is measured


def case_of(row):
    if "case" in row:
        return Case(*row["case"])
    rows, features, classes, kept = row["shape"]
    return Case(rows, classes, kept=kept, features=features)


def in_logits(row):
    """The bytes of a row beyond the gradients, in sizes of the model's logits."""
    if "bytes" not in row:
        return row
    case, extra = Case(*row["case"]), row.pop("bytes")
    gradients = 4 * (case.rows + case.classes) * case.features
    return row | {"extra": extra and round((extra - gradients) / (4 * MODEL.rows * MODEL.classes), 3)}


def page(result):
    """The page's tables, in Markdown."""
    out = []
    for group in GROUPS:
        rows = [(case_of(row), row) for row in result["rows"] if row["group"] == group]
        out.append(f"**{TITLES[group]}**: times in ms, and theirs / ours\n\n")
        out.append(times_table("rows × features × classes", rows, beside) + "\n")
    out.append(
        f"**Memory** at the peak beyond arguments and gradients, as a share of {MODEL[0]} × {MODEL[1]} logits\n\n"
    )
    extra = {(r["group"], r["provider"], case_of(r).rows): r["extra"] for r in result["memory"]}
    rows = [
        [f"{group}: {name}", *(str(extra.get((group, name, case.rows), "")) for case in MEMORY)]
        for group in GROUPS
        for name in MEASURED[group]
    ]
    out.append(table(["", *(f"{case.rows} rows" for case in MEMORY)], rows))
    return "".join(out) + f"\nMeasured on {provenance(result)}.\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, one round")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of a case (20)")
    args = parser.parse_args()
    cases, sizes, limit, fewest = CASES, MEMORY, args.limit, 5
    if args.quick:
        cases, sizes, limit, fewest = (SMALL, SMALL._replace(kept=15)), (SMALL,), 0.05, 1
    folder = ROOT / ("build/bench" if args.quick else "docs/_generated")
    result = Result(folder / "linear.json", "linear", GROUPS, rows=[], memory=[])
    options = {"setting": "linear", "directions": [BOTH], "limit": limit, "fewest": fewest}
    for group in GROUPS:
        for case in cases:  # each in a process of its own
            result.add("rows", child("cases", group, {**options, "cases": [case]}))
    for group in GROUPS:
        for case in sizes:
            for name in MEASURED[group]:
                given = {**options, "case": case, "direction": BOTH, "provider": name, "warm": FEW}
                result.add("memory", [in_logits(row) for row in child("memory", group, given)])
    path = result.finish()
    print(page(result.found))
    end(result.found, path)


if __name__ == "__main__":
    main()
