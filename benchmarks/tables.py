"""The page's tables, as Markdown, from the result of a run."""

from importlib import import_module

from timing import line, middle, ratios
from workloads import (
    BERT,
    DIRECTIONS,
    DTYPES,
    FRACTIONS,
    OTHERS,
    SHOWN,
    SMALL,
    Case,
    classes_series,
    name_of,
    rows_series,
)

GROUPS = ("torch", "jax", "numpy")
TITLES = {"torch": "PyTorch", "jax": "JAX under jit", "numpy": "NumPy"}
PEER = {"torch": "F.cross_entropy", "jax": "optax", "numpy": "scipy"}
OURS = "maskloss"
FORWARD, BOTH = DIRECTIONS
# Group, direction, percent kept; and for each of SHOWN the ratio that is aimed at.
GOALS = (
    ("torch", FORWARD, None, (2.2, 2.0, 0.9, 0.9)),
    ("torch", BOTH, None, (1.7, 1.6, 0.9, 0.9)),
    ("torch", FORWARD, 15, (12, 9, 1.0, 1.0)),
    ("torch", BOTH, 15, (3, 2.8, 1.0, 1.0)),
    ("numpy", FORWARD, None, (3, 3, 1.0, 1.0)),
    ("numpy", BOTH, None, (2.2, 2, 1.0, 1.0)),
    ("numpy", FORWARD, 15, (None,) * 4),
    ("numpy", BOTH, 15, (None,) * 4),
    ("jax", FORWARD, None, (1.0, 1.0, 0.95, 0.95)),
    ("jax", BOTH, None, (1.0, 1.0, 0.95, 0.95)),
    ("jax", FORWARD, 15, (3.5, 3, 0.9, 0.9)),
    ("jax", BOTH, 15, (1.4, 1.3, 0.9, 0.9)),
)
NOT_MEASURED = "Not measured in this run.\n"


def rows_of(result):
    return {(row["group"], Case(*row["case"]), row["direction"]): row for row in result["rows"]}


def figure(number):
    """Three digits, without an exponent."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def duration(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{figure(seconds * factor)} {unit}"
    return f"{figure(seconds * 1e6)} µs"


def ratio(row, peer, ours=OURS):
    """Median and quartiles, or None where one of the two did not run."""
    if row is None or peer not in row["seconds"] or ours not in row["seconds"]:
        return None
    return ratios(row["seconds"][peer], row["seconds"][ours])


def spread(three):
    return "" if three is None else f"{figure(three[0])} ({figure(three[1])}–{figure(three[2])})"


def best_peer(row):
    """The fastest that is not ours, and its ratio."""
    peers = [name for name in row["seconds"] if not name.startswith(OURS)] if row else []
    if not peers or OURS not in row["seconds"]:
        return None
    best = min(peers, key=lambda name: middle(row["seconds"][name])[0])
    return best, ratio(row, best)


def kept_text(kept):
    return "no mask" if kept is None else f"{kept} % kept"


def shape_text(case):
    return f"{case[0]} × {case[1]}"


def table(header, rows):
    if not rows:
        return NOT_MEASURED
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (header, ["---"] * len(header), *rows))


def goal_cell(three, goal):
    if three is None or goal is None:
        return spread(three)
    return f"{spread(three)}; goal {goal:g}" + (", **not reached**" if three[0] < goal else "")


def shown(result):
    """Peer time / maskloss time in the grid of GOALS: the peer as shipped, then the fastest of all peers."""
    found, shipped, best = rows_of(result), [], []
    for group, direction, kept, goals in GOALS:
        rows = [found.get((group, Case(*shape, kept=kept), direction)) for shape in SHOWN]
        if not any(rows):
            continue
        title = f"{TITLES[group]}, {direction}, {kept_text(kept)}"
        cells = [goal_cell(ratio(row, PEER[group]), goal) for row, goal in zip(rows, goals, strict=True)]
        shipped.append([title, PEER[group], *cells])
        bests = [best_peer(row) for row in rows]
        best.append([title, *["" if b is None else f"{figure(b[1][0])} {b[0]}" for b in bests]])
    shapes = [shape_text(shape) for shape in SHOWN]
    return (
        "**Against the peer as shipped**\n\n"
        + table(["float32", "peer", *shapes], shipped)
        + "\n**Against the fastest of all peers**, named in the cell\n\n"
        + table(["float32", *shapes], best)
    )


def time_cells(row, names):
    """Median times, the shortest in bold."""
    medians = {name: middle(seconds)[0] for name, seconds in row["seconds"].items()}
    shortest = min(medians.values())
    texts = {name: f"**{duration(t)}**" if t == shortest else duration(t) for name, t in medians.items()}
    return [duration(row["floor"]), *[texts.get(name, "") for name in names]]


def times(result):
    found, out = rows_of(result), []
    for group in GROUPS:
        cases = [Case(*shape, kept=kept) for shape in SHOWN for kept in (None, 15)]
        rows = [(c, d, found.get((group, c, d))) for c in cases for d in DIRECTIONS]
        rows = [(c, d, row) for c, d, row in rows if row]
        names = list(dict.fromkeys(name for *_, row in rows for name in row["seconds"]))
        cells = [[shape_text(c), kept_text(c.kept), d, *time_cells(row, names)] for c, d, row in rows]
        out.append(f"**{TITLES[group]}**\n\n" + table(["rows × classes", "mask", "direction", "floor", *names], cells))
    return "\n".join(out)


def variant_rows(result, cases):
    """Ratio and time of each library in both directions."""
    found, rows = rows_of(result), []
    for case in cases:
        for direction in DIRECTIONS:
            cells = []
            for group in GROUPS:
                row = found.get((group, case, direction))
                three = ratio(row, PEER[group])
                cells.append("" if three is None else f"{spread(three)}, {duration(middle(row['seconds'][OURS])[0])}")
            if any(cells):
                rows.append([name_of(case), direction, *cells])
    return rows


def variants(result):
    """Kept fractions, dtypes, layouts and the rest."""
    bert, small = Case(*BERT), Case(*SMALL)
    kinds = {
        "Kept fraction": [c._replace(kept=kept) for c in (bert, small) for kept in (None, *FRACTIONS)],
        "Dtypes": [Case(*shape, dtype, kept) for dtype in DTYPES for shape in SHOWN for kept in (None, 15)],
        "Other shapes": [Case(*shape, kept=kept) for shape in OTHERS for kept in (None, 15)],
        "Layouts of the mask": [bert._replace(kept=15, layout=layout) for layout in ("scattered", "prefix", "padded")],
        "Peaked logits": [bert, bert._replace(logits="peaked")],
        'reduction="none", with random upstream gradients': [
            c._replace(kept=15, reduction="none") for c in (bert, small)
        ],
        "An upstream gradient of 3": [c._replace(kept=15, upstream=3.0) for c in (bert, small)],
    }
    header = ["case", "direction", *[f"{TITLES[g]}, against {PEER[g]}" for g in GROUPS]]
    return "\n".join(f"**{kind}**\n\n{table(header, variant_rows(result, cases))}" for kind, cases in kinds.items())


def providers(result):
    rows = [
        [TITLES[group], p.name, p.call, p.runs] for group in GROUPS for p in import_module(f"group_{group}").PROVIDERS
    ]
    return table(["library", "name here", "call", "runs"], rows)


def single_rows(rows, text):
    """One row for each case and provider, its two directions side by side."""
    cells = {}
    for row in rows:
        key = (TITLES[row["group"]], name_of(Case(*row["case"])), row["provider"])
        cells.setdefault(key, {})[row["direction"]] = text(row)
    return [[*key, *[found.get(d, "") for d in DIRECTIONS]] for key, found in cells.items()]


def memory(result):
    def text(row):
        return "not known here" if row["extra"] is None else f"{row['extra']:.2f}"

    return table(["library", "case", "provider", *DIRECTIONS], single_rows(result["memory"], text))


def first_calls(result):
    def text(row):
        return f"{duration(row['first'])}, then {duration(row['later'])}"

    return table(["library", "case", "provider", *DIRECTIONS], single_rows(result["first call"], text))


def overhead(result):
    rows = [
        [row["backend"], row["direction"], f"{figure(row['raw'])} µs", f"{spread(row['overhead'])} µs"]
        for row in result["overhead"]
    ]
    out = table(["backend", "direction", "the raw work", "beyond it"], rows)
    if times := result.get("import"):
        every, without, own = (figure(times[key]) for key in ("all", "without array_api_compat", "own"))
        out += f"\n`import maskloss` takes {every} ms; {without} ms without array_api_compat; "
        out += f"{own} ms its own modules, without those of the standard library that they import.\n"
    return out


def fitted(result, group, direction, name, cases):
    """Sizes, times and line over the cases that ran, or None."""
    found = rows_of(result)
    rows = [found.get((group, case, direction)) for case in cases]
    rows = [row for row in rows if row and name in row["seconds"]]
    if len(rows) < 3:
        return None
    sizes, seconds = [row["kept logits"] for row in rows], [middle(row["seconds"][name])[0] for row in rows]
    return sizes, seconds, line(sizes, seconds)


def fits(result):
    """Fixed cost and slope over the rows; and the range of the slope over the classes."""
    rows = []
    for group in GROUPS:
        for direction in DIRECTIONS:
            for name in (OURS, PEER[group]):
                by_rows = fitted(result, group, direction, name, rows_series())
                by_classes = fitted(result, group, direction, name, classes_series())
                if by_rows is None:
                    continue
                a, b, off = by_rows[2]
                per_logit = [] if by_classes is None else [t / n * 1e9 for n, t in zip(*by_classes[:2], strict=True)]
                between = f"{figure(min(per_logit))}–{figure(max(per_logit))}" if per_logit else ""
                fixed = f"{a * 1e6:.0f}"
                rows.append([TITLES[group], direction, name, fixed, figure(b * 1e9), f"{off:.0%}", between])
    header = ["library", "direction", "provider", "fixed cost, µs", "ns per logit", "largest deviation"]
    return table([*header, "ns per logit, 1024 to 1048576 classes"], rows)


def run(result):
    """Machine, versions, bandwidths."""
    machine, speeds = result["machine"], []
    for group in GROUPS:
        pairs = [row["GB/s"] for row in result["rows"] if row["group"] == group and row["case"][:2] == list(BERT)]
        if pairs:
            read, written = (middle(column)[0] for column in zip(*pairs, strict=True))
            how = import_module(f"group_{group}").BANDWIDTH
            speeds.append([TITLES[group], f"{read:.1f} GB/s", f"{written:.1f} GB/s", how])
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    warning = "**A quick run on small arrays: none of its numbers says anything.**\n\n" if result["quick"] else ""
    return (
        f"{warning}{result['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['GiB']} GiB. {versions}. "
        f"The run took {result['seconds'] / 60:.0f} minutes.\n\n"
        f"**Bandwidth at {shape_text(BERT)}**, the median over its cases\n\n"
        + table(["library", "read", "written", "measured with"], speeds)
    )


FILES = {
    "shown": shown,
    "times": times,
    "variants": variants,
    "providers": providers,
    "memory": memory,
    "first_calls": first_calls,
    "overhead": overhead,
    "fits": fits,
    "run": run,
}
