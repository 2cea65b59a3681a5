"""The page's tables, as Markdown, from the result of a run."""

from itertools import product

from docs.scripts import table as in_markdown

from . import cases
from .cases import BERT, DIRECTIONS, SHOWN, SMALL, Case, name_of, sizes_of
from .providers import GROUPS, OURS, PEER, SETTINGS, TITLES
from .timing import line, middle, ratios

SPEED = {
    "torch": ("F.cross_entropy", "F.cross_entropy, kept rows", "F.cross_entropy, torch.compile"),
    "numpy": ("scipy", "scipy, kept rows"),
    "jax": ("optax",),
}
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
    return in_markdown(header, rows) if rows else NOT_MEASURED


def names_in(rows):
    return list(dict.fromkeys(name for row in rows for name in row["seconds"]))


def beside(row, name):
    """Milliseconds, and of another the ratio to ours."""
    if name not in row["seconds"]:
        return ""
    three = ratio(row, name) if name != OURS else None
    text = figure(1e3 * middle(row["seconds"][name])[0])
    if three is None:
        return text
    between = f"; {figure(three[1])}–{figure(three[2])}" if len(row["seconds"][name]) > 1 else ""
    return f"{text} ({figure(three[0])}{between})"


def times_table(corner, pairs, cell, name_of=None):
    """A line for each (case, row): the floor in ms, then cell(row, name) of every provider."""
    names = names_in(row for _, row in pairs)
    name_of = name_of or short_name
    lines = [[name_of(c), floor_text(row), *(cell(row, name) for name in names)] for c, row in pairs]
    return table([corner, "floor", *names], lines)


def floor_text(row):
    return figure(1e3 * row["floor"]) if "floor" in row else ""


def short_name(case):
    parts = [" × ".join(sizes_of(case)), "all" if case.kept is None else f"{case.kept} %"]
    return ", ".join(parts + [case.logits] * (case.logits != "normal") + ["cold cache"] * case.cold)


def provenance(result, after_date=": ", after_machine="; "):
    where, versions = result["machine"], ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    machine = f"{where['cpu']}, {where['cores']} cores, {where['GiB']} GiB"
    return f"{result['date']}{after_date}{machine}{after_machine}{versions}"


def shown(result):
    """Peer time / maskloss time in the grid: the peer as shipped, then the fastest of all peers."""
    found, shipped, best = rows_of(result), [], []
    for group, kept, direction in product(("torch", "numpy", "jax"), (None, 15), DIRECTIONS):
        rows = [found.get((group, Case(*shape, kept=kept), direction)) for shape in SHOWN]
        if not any(rows):
            continue
        title = f"{TITLES[group]}, {direction}, {kept_text(kept)}"
        shipped.append([title, PEER[group], *(spread(ratio(row, PEER[group])) for row in rows)])
        bests = [best_peer(row) for row in rows]
        best.append([title, *["" if b is None else f"{figure(b[1][0])} {b[0]}" for b in bests]])
    shapes = [shape_text(shape) for shape in SHOWN]
    return (
        "**Against the peer as shipped**\n\n"
        + table(["float32", "peer", *shapes], shipped)
        + "\n**Against the fastest of all peers**, named in the cell\n\n"
        + table(["float32", *shapes], best)
    )


def speed(result):
    """Peer time / maskloss time at the largest shape, of each library's peers: what the README shows."""
    found, rows = rows_of(result), []
    columns = list(product((None, 15), DIRECTIONS))
    for group in ("torch", "numpy", "jax"):
        cells = [found.get((group, Case(*BERT, kept=kept), direction)) for kept, direction in columns]
        for name in SPEED[group]:
            three = [ratio(row, name) for row in cells]
            if any(three):
                rows.append([f"{TITLES[group]}: {name}", *("" if r is None else f"{r[0]:.2g}" for r in three)])
    words = [f"{of}, {kept}" for kept in ("everything kept", "15 % kept") for of in ("loss", "loss and gradient")]
    return table(["", *words], rows) + (
        f"\nLogits of {shape_text(BERT)} in float32; medians; {result['date']}, {result['machine']['cpu']}, "
        f"{result['machine']['cores']} cores.\n"
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
        rows = [(c, d, found.get((group, c, d))) for c in cases.shown() for d in DIRECTIONS]
        rows = [(c, d, row) for c, d, row in rows if row]
        names = names_in(row for *_, row in rows)
        cells = [[shape_text(c), kept_text(c.kept), d, *time_cells(row, names)] for c, d, row in rows]
        out.append(f"**{TITLES[group]}**\n\n" + table(["rows × classes", "mask", "direction", "floor", *names], cells))
    return "\n".join(out)


def variant_rows(result, listed):
    """Ratio and time of each library in both directions."""
    found = rows_of(result)

    def cell(group, case, direction):
        row = found.get((group, case, direction))
        three = ratio(row, PEER[group])
        return "" if three is None else f"{spread(three)}, {duration(middle(row['seconds'][OURS])[0])}"

    rows = [(c, d, [cell(group, c, d) for group in GROUPS]) for c, d in product(listed, DIRECTIONS)]
    return [[name_of(c), d, *cells] for c, d, cells in rows if any(cells)]


def variants(result):
    """Kept fractions, dtypes, layouts and the rest."""
    bert, small = Case(*BERT), Case(*SMALL)
    kinds = {
        "Kept fraction": [c._replace(kept=kept) for c in (bert, small) for kept in (None, *cases.FRACTIONS)],
        "Dtypes": [Case(*shape, dtype, kept) for dtype in cases.DTYPES for shape in SHOWN for kept in (None, 15)],
        "Other shapes": [Case(*shape, kept=kept) for shape in cases.OTHERS for kept in (None, 15)],
        "Shapes that nothing was tuned to": [*(Case(*s) for s in cases.UNTUNED), Case(*cases.LARGE, "bfloat16")],
        "A gradient that is made, and not read": [bert._replace(kept=kept, read=False) for kept in (15, 2)],
        "Layouts of the mask": [bert._replace(kept=15, layout=layout) for layout in ("scattered", "prefix", "padded")],
        "Peaked logits": [bert, bert._replace(logits="peaked")],
        'reduction="none", with random upstream gradients': [
            c._replace(kept=15, reduction="none") for c in (bert, small)
        ],
        "An upstream gradient of 3": [c._replace(kept=15, upstream=3.0) for c in (bert, small)],
    }
    header = ["case", "direction", *[f"{TITLES[g]}, against {PEER[g]}" for g in GROUPS]]
    return "\n".join(f"**{kind}**\n\n{table(header, variant_rows(result, listed))}" for kind, listed in kinds.items())


def providers(result):
    rows = [
        [TITLES[group], p.name, p.call, p.where.words] for group in GROUPS for p in SETTINGS["page"][group].providers
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


def fitted(result, group, direction, name, listed):
    """Sizes, times and line over the cases that ran, or None."""
    found = rows_of(result)
    rows = [found.get((group, case, direction)) for case in listed]
    rows = [row for row in rows if row and name in row["seconds"]]
    if len(rows) < 3:
        return None
    sizes, seconds = [row["kept logits"] for row in rows], [middle(row["seconds"][name])[0] for row in rows]
    return sizes, seconds, line(sizes, seconds)


def fits(result):
    """Fixed cost and slope over the rows; and the range of the slope over the classes."""
    rows = []
    for group, direction in product(GROUPS, DIRECTIONS):
        for name in (OURS, PEER[group]):
            by_rows = fitted(result, group, direction, name, cases.rows_series())
            by_classes = fitted(result, group, direction, name, cases.classes_series())
            if by_rows is None:
                continue
            a, b, off = by_rows[2]
            per_logit = [] if by_classes is None else [t / n * 1e9 for n, t in zip(*by_classes[:2], strict=True)]
            between = f"{figure(min(per_logit))}–{figure(max(per_logit))}" if per_logit else ""
            cells = [f"{a * 1e6:.0f}", figure(b * 1e9), f"{off:.0%}", between]
            rows.append([TITLES[group], direction, name, *cells])
    header = ["library", "direction", "provider", "fixed cost, µs", "ns per logit", "largest deviation"]
    return table([*header, "ns per logit, 1024 to 1048576 classes"], rows)


def run(result):
    """Machine, versions, bandwidths."""
    speeds = []
    for group in GROUPS:
        pairs = [row["GB/s"] for row in result["rows"] if row["group"] == group and row["case"][:2] == list(BERT)]
        if pairs:
            read, written = (middle(column)[0] for column in zip(*pairs, strict=True))
            speeds.append([TITLES[group], f"{read:.1f} GB/s", f"{written:.1f} GB/s", SETTINGS["page"][group].bandwidth])
    warning = "**A quick run on small arrays: none of its numbers says anything.**\n\n" if result["quick"] else ""
    return (
        f"{warning}{provenance(result, ', ', '. ')}. The run took {result['seconds'] / 60:.0f} minutes.\n\n"
        f"**Bandwidth at {shape_text(BERT)}**, the median over its cases\n\n"
        + table(["library", "read", "written", "measured with"], speeds)
    )


PAGES = (speed, shown, times, variants, providers, memory, first_calls, overhead, fits, run)
