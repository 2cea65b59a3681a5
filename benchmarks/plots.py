"""The page's plots, from the result of a run."""

import numpy as np

from .cases import BERT, DIRECTIONS, FRACTIONS, Case, classes_series, name_of, rows_series
from .linear import case_of
from .providers import GROUPS, OURS, PEER, PEER_OF_LINEAR, TITLES
from .tables import fitted, rows_of, short_name
from .timing import middle

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
FLOOR = {"color": "gray", "linestyle": ":", "label": "floor"}
NAMES = {
    "torch": (OURS, "F.cross_entropy", "F.cross_entropy, kept rows"),
    "jax": (OURS, "optax", "jax.nn"),
    "numpy": (OURS, "scipy"),
}


def named(row):
    return TITLES[row["group"]], name_of(Case(*row["case"])), row["provider"]


def rows_present(found, group, direction, cases):
    return [(case, row) for case in cases if (row := found.get((group, case, direction)))]


def draw(axis, pairs, names, place, *, marker="o"):
    """Median time of each provider and the floor against place(case); the quartiles as a band."""
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(place(c), *middle(row["seconds"][name])) for c, row in pairs if name in row["seconds"]]
        if points:
            at, centre, low, high = np.transpose(points) * np.asarray([[1], [1e3], [1e3], [1e3]])
            axis.plot(at, centre, marker=marker, markersize=4, color=colour, label=name)
            axis.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    if pairs:
        axis.plot([place(c) for c, _ in pairs], [row["floor"] * 1e3 for _, row in pairs], **FLOOR)


def fractions():
    return sorted((Case(*BERT, kept=kept) for kept in FRACTIONS), key=lambda case: case.kept)


def kept_fraction(plt, result, group, direction, axis):
    pairs = rows_present(rows_of(result), group, direction, fractions())
    draw(axis, pairs, NAMES[group], lambda case: case.kept)
    axis.set(xlabel="kept, %", ylabel="ms", title=f"{TITLES[group]}, {direction}", ylim=(0, None))


def readme(plt, result):
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    kept_fraction(plt, result, "torch", DIRECTIONS[1], axis)
    axis.set_title(f"PyTorch, loss and dense gradient, {BERT[0]} × {BERT[1]}, float32")
    axis.legend()
    return figure


def grid(plt, one):
    """one(group, direction, axis) for every library and direction."""
    figure, axes = plt.subplots(len(GROUPS), 2, figsize=(9, 9), layout="constrained")
    for group, line_of_axes in zip(GROUPS, axes, strict=True):
        for direction, axis in zip(DIRECTIONS, line_of_axes, strict=True):
            one(group, direction, axis)
            if axis.lines:
                axis.legend(fontsize=8)
    return figure


def kept(plt, result):
    return grid(plt, lambda group, direction, axis: kept_fraction(plt, result, group, direction, axis))


def series(plt, result, cases, place, label, *, with_line):
    found = rows_of(result)

    def one(group, direction, axis):
        names = (OURS, PEER[group])
        draw(axis, rows_present(found, group, direction, cases), names, place)
        fit = fitted(result, group, direction, OURS, cases) if with_line else None
        if fit:
            sizes, _, (a, b, _) = fit
            at = [place(c) for c, _ in rows_present(found, group, direction, cases)]
            axis.plot(at, [1e3 * (a + b * n) for n in sizes], "--", color="black", linewidth=0.8, label="fitted line")
        axis.set(xscale="log", xlabel=label, ylabel="ms", title=f"{TITLES[group]}, {direction}")
        if with_line:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, None)

    return grid(plt, one)


def against_rows(plt, result):
    label = f"rows, of {BERT[1]} classes"
    return series(plt, result, rows_series(), lambda c: c.rows, label, with_line=True)


def against_classes(plt, result):
    label = "classes, of $2^{24}$ logits in all"
    return series(plt, result, classes_series(), lambda c: c.classes, label, with_line=False)


def memory(plt, result):
    """Bars of the extra memory, one group of them for each case."""
    rows = [row for row in result["memory"] if row["extra"] is not None]
    figure, axes = plt.subplots(1, 2, figsize=(9, 6), layout="constrained", sharey=True)
    labels = list(dict.fromkeys(map(named, rows)))
    for direction, axis in zip(DIRECTIONS, axes, strict=True):
        extra = {named(row): row["extra"] for row in rows if row["direction"] == direction}
        colours = ["tab:blue" if key[2].startswith(OURS) else "tab:orange" for key in labels]
        axis.barh(range(len(labels)), [extra.get(key, 0) for key in labels], color=colours)
        if direction != DIRECTIONS[0]:
            axis.axvline(1, **{**FLOOR, "label": "the gradient"})
            axis.legend(loc="lower right")
        axis.set(title=direction, xlabel="extra memory, in sizes of the logits")
    texts = [f"{provider}: {group}, {case.split(', ', 1)[1]}" for group, case, provider in labels]
    axes[0].set_yticks(range(len(labels)), texts, fontsize=7)
    axes[0].invert_yaxis()
    return figure


def linear(plt, result):
    """Of benchmarks/linear.py: the time of each provider, one group of bars for each shape, and the floor across it."""
    figure, axes = plt.subplots(1, len(NAMES_OF_LINEAR), figsize=(9, 3.6), layout="constrained")
    for axis, (group, names) in zip(axes, NAMES_OF_LINEAR.items(), strict=True):
        rows = [row for row in result["rows"] if row["group"] == group]
        width = 0.8 / len(names)
        for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            found = [(at, *middle(row["seconds"][name])) for at, row in enumerate(rows) if name in row["seconds"]]
            at, centre, low, high = np.transpose(found) * np.asarray([[1], [1e3], [1e3], [1e3]])
            spread = (centre - low, high - centre)
            axis.bar(at + i * width, centre, width, yerr=spread, color=colour, label=name, error_kw={"linewidth": 0.8})
        ends = [(at - width / 2, at + 0.8 - width / 2) for at in range(len(rows))]
        for (left, right), row in zip(ends, rows, strict=True):
            line = axis.hlines(1e3 * row["floor"], left, right, color="black", linestyle=":")
        line.set_label(FLOOR["label"])
        shapes = [case_of(row) for row in rows]
        texts = [f"{c.rows} × {c.features}\n× {c.classes}\n{short_name(c).split(', ')[1]}" for c in shapes]
        axis.set_xticks([np.mean(end) for end in ends], texts, fontsize=7)
        axis.set(ylabel="ms", title=f"{TITLES[group]}, loss and gradients")
        axis.legend(fontsize=7)
    return figure


NAMES_OF_LINEAR = {
    "torch": (OURS, PEER_OF_LINEAR["torch"], "F.linear_cross_entropy", "the same, kept rows"),
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
    """The pictures, with `mark` in its metadata: it says which result it was made from."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for name, make in pictures.items():
        figure = make(plt, result)
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None, "Source": mark})
        plt.close(figure)
