"""How every plot of the documentation looks: on nothing, in colours seen on white and on black, for a phone."""

GRAY = "#7a7a7a"  # as far from white as from black
BLUE, ORANGE, GREEN, PURPLE, RED, BROWN = "#2f86d6", "#e07b1a", "#2a9d6f", "#a56cc1", "#d9534f", "#9a7b4f"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, BROWN)
WIDTH = 5.4  # inches: with these letters a phone, which shows it at two thirds, leaves seven points of them
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maskloss",  # the same file from the same numbers
    "font.size": 9,
    "figure.titlesize": 10,
    "axes.titlesize": 9,
    "axes.prop_cycle": "cycler('color', ['" + "', '".join(COLOURS) + "'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GRAY),
}


def pyplot():
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt


def legend_above(figure, axes, columns):
    """One legend for all axes, above them, where it is on no line."""
    found = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=columns, handlelength=2.2)


def save(figure, path, mark=None):
    """As SVG; `mark` in its metadata says which result it was made from."""
    figure.savefig(path, metadata={"Creator": None, "Date": None, "Source": mark})
