"""docs/_generated/which_mean.svg: what each entry of a padded batch contributes to each of the means.

python docs/scripts/which_mean.py --write
python docs/scripts/which_mean.py --check    # exit 1 where the picture is not what would be drawn now
"""

import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, arguments, outdated

PICTURE = GENERATED / "which_mean.svg"
# The batch of docs/which_mean.md: the losses in bits and the weights of the entries that are kept; None is padding.
LOSSES = ((1, 1, 1, 1, 1), (2, 2, None, None, None), (4, None, None, None, None))
WEIGHTS = (1, 1, 2)  # of each sequence
BLUE, GRAY = "#3b8bd9", "#7a7a7a"  # seen on white and on black
CELL, GAP, LEFT, TOP = 48, 36, 2, 46
COLUMNS = len(LOSSES[0])
WIDTH, HEIGHT = 2 * COLUMNS * CELL + GAP + 2 * LEFT, len(LOSSES) * CELL + TOP


def shares():
    """Title -> what each entry's loss is multiplied by in the mean; 0 of padding."""
    entries = [(i, j) for i, row in enumerate(LOSSES) for j, loss in enumerate(row) if loss is not None]
    lengths = [sum(loss is not None for loss in row) for row in LOSSES]
    divisors = {
        "mean": sum(WEIGHTS[i] for i, _ in entries),
        "mean_over_kept": len(entries),
        "mean_over_all": len(LOSSES) * COLUMNS,
    }
    found = {name: {at: Fraction(WEIGHTS[at[0]], divisor) for at in entries} for name, divisor in divisors.items()}
    # The weights of a sequence are equal here, and cancel in its own mean.
    found["mean_over_sequences"] = {(i, j): Fraction(1, lengths[i] * len(LOSSES)) for i, j in entries}
    return found


def value(share):
    return sum(of * LOSSES[i][j] for (i, j), of in share.items())


def text(x, y, words, size=14, colour=GRAY, anchor="middle", weight="normal"):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{words}</text>\n'
    )


def square(x, y, side, style):
    return f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" {style}/>\n'


def panel(x, y, title, below, inside, counted=None):
    """A grid of cells: inside maps places to (words, share or None); counted is what padding adds to a divisor."""
    out = text(x, y + 16, title, 16, GRAY, "start", "bold") + text(x, y + 35, below, 14, GRAY, "start")
    for i, row in enumerate(LOSSES):
        for j in range(len(row)):
            left, top = x + j * CELL, y + TOP + i * CELL
            kept = (i, j) in inside
            out += square(left, top, CELL, f'fill="none" stroke="{GRAY}"' + ("" if kept else ' stroke-dasharray="3 4"'))
            words, share = inside.get((i, j), ("0" if counted else "", counted))
            if share:
                side = round(CELL * 0.9 * float(share) ** 0.5, 2)
                style = f'fill="{BLUE}"' if kept else f'fill="none" stroke="{BLUE}"'
                out += square(left + 4, top + 4, side, style)
            out += text(left + CELL - 4, top + CELL - 5, words, 14, GRAY, "end") if words else ""
    return out


def picture():
    cells = {(i, j): (f"{loss}", None) for i, row in enumerate(LOSSES) for j, loss in enumerate(row) if loss}
    right = LEFT + COLUMNS * CELL + GAP
    out = panel(LEFT, 0, "The losses", "three sequences, padded to five", cells)
    weights = {at: (f"{WEIGHTS[at[0]]}", None) for at in cells}
    out += panel(right, 0, "The weights", "2 for the last sequence", weights)
    for at, (name, share) in enumerate(shares().items()):
        total = value(share)
        counted = Fraction(1, len(LOSSES) * COLUMNS) if name == "mean_over_all" else None
        inside = {place: (f"{of.numerator}/{of.denominator}", of) for place, of in share.items()}
        words = f"= {total.numerator}/{total.denominator} = {float(total):.3f}"
        place = (right if at % 2 else LEFT, (1 + at // 2) * (HEIGHT + 20))
        out += panel(*place, name, words, inside, counted)
    height = 3 * HEIGHT + 2 * 20 + 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif">\n{out}</svg>\n'
    )


def main():
    parser, _ = arguments(__doc__)
    drawn = {PICTURE: picture()}
    if parser.parse_args().write:
        PICTURE.write_text(drawn[PICTURE])
    elif outdated(drawn):
        sys.exit(f"{PICTURE.name} is stale: run docs/scripts/which_mean.py --write")


if __name__ == "__main__":
    main()
