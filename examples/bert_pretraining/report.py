"""The run as Markdown tables and as a plot."""

import matplotlib.pyplot as plt
import numpy as np

NAMES = {"mlm": "masked-LM", "nsp": "next-sentence"}
COLOURS, GRAY = {"PyTorch": "#e07b1a", "JAX": "#2f86d6"}, "#7a7a7a"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maskloss",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GRAY),
}


def table(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def training(result):
    rows = []
    for name, held_out in result["held out"].items():
        for key, of in held_out.items():
            numbers = (result["uniform"][key], result["first"][name][key], result["last"][name][key], of["loss"])
            correct = f"{of['correct']:.1%} of {of['count']}"
            rows.append([name, NAMES[key], *(f"{x:.3f}" for x in numbers), correct])
    last = f"last {result['averaged over the last']} steps"
    return table(["trained in", "objective", "uniform guess", "first 5 steps", last, "held out", "correct"], rows)


def agreement(result):
    found = result["agreement"]
    rows = [
        [name, *(f"{row[key]:.7f}" for key in ("mlm", "nsp", "sum")), *(f"{row['off'][k]:.1e}" for k in row["off"])]
        for name, row in found["rows"].items()
    ]
    exact = [f"{found['float64'][key]:.7f}" for key in ("mlm", "nsp", "sum")]
    between = [f"**{found['largest difference'][key]:.1e}**" for key in ("value", "gradient")]
    rows += [["numpy, float64", *exact, "", ""], ["largest difference between any two", "", "", "", *between]]
    header = ["backend, float32", "masked-LM", "next-sentence", "sum", "value off by", "gradient off by"]
    return table(header, rows)


def wrong_ways(result):
    rows = []
    for objective, what, value, right in result["wrong ways"]:
        cells = ["NaN", ""] if value is None else [f"{value:.4f}", f"{value / right - 1:+.1%}"]
        if what.startswith("maskloss"):
            what, cells[1] = f"**{what}**", ""
        rows.append([objective, what, *cells])
    return table(["objective", "what is done", "gives", "off by"], rows)


def markdown(result):
    kept, entries, seconds = result["kept"], result["entries"], result["seconds"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    times = ", ".join(f"{name} {number:.0f} s" for name, number in seconds.items())
    return f"""\
**Training.** {result["steps"]} steps of {result["batch_size"]} sequences, a vocabulary of {result["vocab_size"]}:

{training(result)}
**The masked-LM head** has no logits: of {entries["mlm"]} x {result["vocab_size"]} numbers, \
{entries["mlm"] * result["vocab_size"] * 4 / 1e6:.1f} MB a step and three times as many with their gradient, only the \
{kept["mlm"]} rows of the slots that have a label are made ({kept["mlm"] * result["vocab_size"] * 4 / 1e6:.1f} MB), \
in memory that also takes their gradient; {1 - kept["mlm"] / entries["mlm"]:.0%} of the head's products are spared.

**One batch of outputs on every backend.** Of {entries["mlm"]} slots for masked tokens {kept["mlm"]} have a label; of \
{entries["nsp"]} sequences {kept["nsp"]} have a second segment. The last two columns compare with NumPy in float64; \
the largest entry of the gradient is {result["agreement"]["largest gradient"]:.1e}.

{agreement(result)}
**The same batch, the usual ways.**

{wrong_ways(result)}
{result["date"]}, {result["machine"]}. {versions}. Times: {times}; {sum(seconds.values()):.0f} s in all; \
{result["processor seconds"]:.0f} s of processor time.
"""


def plot(result, path):
    """Single steps are thin, their running mean thick; letters and colours are seen on white and on black."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 1, figsize=(5.4, 5.6), sharex=True, layout="constrained")
        for axis, (key, title) in zip(axes, NAMES.items(), strict=True):
            for name, curves in result["curves"].items():
                curve = np.asarray(curves[key])
                window = min(20, len(curve))
                smooth = np.convolve(curve, np.full(window, 1 / window), "valid")
                axis.plot(curve, color=COLOURS[name], alpha=0.3, linewidth=0.7)
                label = f"{name}, mean of {window} steps"
                axis.plot(np.arange(window - 1, len(curve)), smooth, color=COLOURS[name], label=label)
            axis.axhline(result["uniform"][key], color=GRAY, linestyle=":", label="uniform guess")
            axis.set(title=f"{title} loss")
        axes[1].set_xlabel("step")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        figure.savefig(path, metadata={"Creator": None, "Date": None})
    plt.close(figure)
