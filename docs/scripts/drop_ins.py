"""The tables of differences, docs/_generated/drop_in_FRAMEWORK.md, from maskloss.drop_in._differences.

python docs/scripts/drop_ins.py --write
python docs/scripts/drop_ins.py --check    # exit 1 where a table is not what the differences say
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, arguments, outdated, table
from maskloss.drop_in._differences import DIFFERENCES

HEADER = ("", "theirs", "ours", "why")


def render(differences):
    """A row each; the functions are said where they are not the same in every row."""
    several = len({row.where for row in differences}) > 1
    rows = [[f"{row.where}: " * several + row.when, row.theirs, row.ours, row.why] for row in differences]
    return table(HEADER, rows)


def outputs(differences=DIFFERENCES, folder=GENERATED):
    return {folder / f"drop_in_{framework}.md": render(rows) for framework, rows in differences.items() if rows}


def main(argv=None, files=None):
    parser, _ = arguments(__doc__)
    asked, files = parser.parse_args(argv), outputs() if files is None else files
    if asked.write:
        for path, text in files.items():
            path.write_text(text)
    elif stale := outdated(files):
        print(f"stale, run python {Path(__file__).name} --write: {', '.join(map(str, stale))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
