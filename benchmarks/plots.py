"""The page's plots, from the result of a run."""

import numpy as np

from . import looks
from .cases import BERT, DIRECTIONS, FRACTIONS, Case, classes_series, name_of, rows_series
from .linear import case_of
from .providers import GROUPS, OURS, PEER, PEER_OF_LINEAR, TITLES
from .tables import fitted, rows_of, short_name
from .timing import middle

FLOOR = {"color": looks.GRAY, "linestyle": ":", "label": "floor"}
WORDS = dict(zip(DIRECTIONS, ("loss", "loss and gradient"), strict=True))
NAMES = {
    "torch": (
        OURS,
        "F.cross_entropy",
        "F.cross_entropy, kept rows",
        "F.cross_entropy, torch.compile",
        "maskloss, torch.compile",
    ),
    "jax": (OURS, "optax", "jax.nn", "optax, where"),
    "numpy": (OURS, "scipy", "scipy, kept rows"),
}


def rows_present(found, group, direction, cases):
    return [(case, row) for case in cases if (row := found.get((group, case, direction)))]


def colours_of(names):
    """Ours blue, also where it is compiled; each peer its own."""
    peers = iter(looks.COLOURS[1:])
    return {name: looks.BLUE if name.startswith(OURS) else next(peers) for name in names}


def draw(axis, pairs, names, place):
    """Median time of each provider and the floor against place(case); the quartiles as a band.

    Who is measured in the grid's cases alone has one point or two: hollow, with a dashed line.
    """
    for name, colour in colours_of(names).items():
        points = [(place(c), *middle(row["seconds"][name])) for c, row in pairs if name in row["seconds"]]
        if points:
            at, centre, low, high = np.transpose(sorted(points)) * np.asarray([[1], [1e3], [1e3], [1e3]])
            few = {"linestyle": "--", "marker": "D", "markerfacecolor": "none"}
            look = few if len(points) < 3 else {"marker": "o"}
            axis.plot(at, centre, markersize=4, linewidth=1.4, color=colour, label=name, **look)
            axis.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
    if pairs:
        axis.plot([place(c) for c, _ in pairs], [row["floor"] * 1e3 for _, row in pairs], **FLOOR)


def fractions():
    """By what is kept; no mask comes last, for whoever was not measured with a mask that keeps everything."""
    return [*sorted((Case(*BERT, kept=kept) for kept in FRACTIONS), key=lambda case: case.kept), Case(*BERT)]


def kept_fraction(found, group, direction, axis):
    pairs = rows_present(found, group, direction, fractions())
    masked = {name for case, row in pairs if case.kept == 100 for name in row["seconds"]}
    shown = []
    for case, row in pairs:
        names = [name for name in row["seconds"] if case.kept is not None or name not in masked]
        if names and (case.kept is not None or masked):
            shown.append((case, row | {"seconds": {name: row["seconds"][name] for name in names}}))
    draw(axis, shown, NAMES[group], lambda case: 100 if case.kept is None else case.kept)
    axis.set(xlabel="kept, %", ylim=(0, None))


def readme(plt, result):
    figure, axis = plt.subplots(figsize=(looks.WIDTH, 3.6), layout="constrained")
    kept_fraction(rows_of(result), "torch", DIRECTIONS[1], axis)
    axis.set_ylabel("ms")
    looks.legend_above(figure, [axis], 2)
    return figure


def grid(plt, one, *, height=3.1, columns=2):
    """one(group, direction, axis) for every library and direction; a library's legend above its two axes."""
    figure = plt.figure(figsize=(looks.WIDTH, height * len(GROUPS)), layout="constrained")
    for group, part in zip(GROUPS, figure.subfigures(len(GROUPS), 1), strict=True):
        axes = part.subplots(1, 2)
        for direction, axis in zip(DIRECTIONS, axes, strict=True):
            one(group, direction, axis)
            axis.set_title(f"{TITLES[group]}: {WORDS[direction]}")
        axes[0].set_ylabel("ms")
        looks.legend_above(part, axes, columns)
    return figure


def kept(plt, result):
    found = rows_of(result)
    return grid(plt, lambda group, direction, axis: kept_fraction(found, group, direction, axis))


def series(plt, result, cases, place, label, *, with_line):
    found = rows_of(result)

    def one(group, direction, axis):
        pairs = rows_present(found, group, direction, cases)
        draw(axis, pairs, NAMES[group] if with_line else (OURS, PEER[group]), place)
        fit = fitted(result, group, direction, OURS, cases) if with_line else None
        if fit:
            sizes, _, (a, b, _) = fit
            line = [1e3 * (a + b * n) for n in sizes]
            at = [place(c) for c, row in pairs if OURS in row["seconds"]]
            axis.plot(at, line, "-", color=looks.GRAY, linewidth=0.8, label="fitted line")
        axis.set(xscale="log", xlabel=label)
        if with_line:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, None)

    return grid(plt, one)


def against_rows(plt, result):
    return series(plt, result, rows_series(), lambda c: c.rows, f"rows, of {BERT[1]} classes", with_line=True)


def against_classes(plt, result):
    label = "classes, of $2^{24}$ logits in all"
    return series(plt, result, classes_series(), lambda c: c.classes, label, with_line=False)


def amount(number):
    """Two digits, and a zero that says so."""
    return f"{number:.2g}" if number >= 0.005 else "0"


def memory(plt, result):
    """Bars of the extra memory with their numbers, grouped by case; a row of axes for each library."""
    rows = [row for row in result["memory"] if row["extra"] is not None]
    groups = [group for group in GROUPS if any(row["group"] == group for row in rows)]
    here = {group: [row for row in rows if row["group"] == group] for group in groups}
    bars = {group: len({(tuple(row["case"]), row["provider"]) for row in here[group]}) for group in groups}
    heights = [0.19 * bars[group] + 1.3 for group in groups]
    figure = plt.figure(figsize=(looks.WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for group, part in zip(groups, parts, strict=True):
        axes = part.subplots(1, 2, sharex=True, sharey=True)
        names = list(dict.fromkeys(row["provider"] for row in here[group]))
        cases = list(dict.fromkeys(Case(*row["case"]) for row in here[group]))
        for direction, axis in zip(DIRECTIONS, axes, strict=True):
            bars_of(axis, [row for row in here[group] if row["direction"] == direction], cases, names)
            axis.set(title=f"{TITLES[group]}: {WORDS[direction]}", xlim=(0, 6.2), xlabel="sizes of the logits")
            axis.grid(visible=False, axis="y")
        axes[1].axvline(1, **FLOOR | {"label": "the gradient"})
        looks.legend_above(part, axes, 2)
    return figure


def bars_of(axis, rows, cases, names):
    """From above: a group of bars for each case, in it one for each provider that was measured."""
    at, ticks = 0.0, []
    colours = colours_of(names)
    for case in cases:
        start = at
        for name in names:
            extra = [row["extra"] for row in rows if Case(*row["case"]) == case and row["provider"] == name]
            if extra:
                hollow = name.startswith(OURS) and name != OURS
                look = {"color": "none" if hollow else colours[name], "edgecolor": colours[name], "label": name}
                axis.barh(at, extra[0], 0.8, **look)
                axis.text(extra[0] + 0.1, at, amount(extra[0]), va="center", fontsize=8)
                at += 1
        ticks.append(((start + at - 1) / 2, name_of(case).split(", ", 1)[1].replace(", ", "\n")))
        at += 0.7
    axis.set_yticks(*zip(*ticks, strict=True))
    axis.set_ylim(at - 1, -0.8)


def linear(plt, result):
    """Of benchmarks/linear.py: the time of each provider, one group of bars for each shape, and the floor across it."""
    figure, axes = plt.subplots(2, 1, figsize=(looks.WIDTH, 7), layout="constrained")
    for axis, (group, names) in zip(axes, NAMES_OF_LINEAR.items(), strict=True):
        rows = [row for row in result["rows"] if row["group"] == group]
        names = [name for name in names if any(name in row["seconds"] for row in rows)]
        width, colours = 0.8 / len(names), colours_of(names)
        for i, name in enumerate(names):
            found = [(at, *middle(row["seconds"][name])) for at, row in enumerate(rows) if name in row["seconds"]]
            at, centre, low, high = np.transpose(found) * np.asarray([[1], [1e3], [1e3], [1e3]])
            look = {"color": colours[name]}
            if name.startswith(OURS) and name != OURS:
                look = {"color": "none", "edgecolor": colours[name]}
            spread = {"yerr": (centre - low, high - centre), "error_kw": {"linewidth": 0.8, "ecolor": looks.GRAY}}
            axis.bar(at + i * width, centre, width, label=name, **look, **spread)
        ends = [(at - width / 2, at + 0.8 - width / 2) for at in range(len(rows))]
        floors = [1e3 * row["floor"] for row in rows]
        left, right = zip(*ends, strict=True)
        axis.hlines(floors, left, right, color="white", linewidth=2.5)  # seen on every bar, and below the dots
        axis.hlines(floors, left, right, color="#333333", linestyle=":", linewidth=1.5, label=FLOOR["label"])
        shapes = [case_of(row) for row in rows]
        texts = [f"{c.rows} × {c.features}\n× {c.classes}\n{short_name(c).split(', ')[1]}" for c in shapes]
        axis.set_xticks([np.mean(end) for end in ends], texts, fontsize=8)
        axis.set(ylabel="ms")
        axis.set_title(TITLES[group], fontweight="bold", loc="left")
        axis.grid(visible=False, axis="x")
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24))
    return figure


NAMES_OF_LINEAR = {
    "torch": (
        OURS,
        "maskloss, torch.compile",
        PEER_OF_LINEAR["torch"],
        "the same, kept rows",
        "the same, torch.compile",
        "F.linear_cross_entropy",
    ),
    "jax": (OURS, PEER_OF_LINEAR["jax"]),
}
PICTURES = {
    "performance": readme,
    "performance_kept": kept,
    "performance_rows": against_rows,
    "performance_classes": against_classes,
    "performance_memory": memory,
}
PICTURES_OF_LINEAR = {"linear": linear}


def save(pictures, result, folder, mark):
    """The pictures, with `mark` in their metadata: it says which result they were made from."""
    plt = looks.pyplot()
    for name, make in pictures.items():
        figure = make(plt, result)
        looks.save(figure, folder / f"{name}.svg", mark)
        plt.close(figure)
