"""What the scripts that write the documentation's tables share. Each is run by its path, from anywhere."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "docs" / "_generated"


def arguments(doc):
    """A parser that wants --write or --check, and the group of these two."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the tables")
    action.add_argument("--check", action="store_true", help="exit 1 where they are not what would be written now")
    return parser, action


def table(header, rows):
    """In Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def marked(text, name, block):
    """`text` with what stands between the markers of `name` replaced."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    return head + begin + block + end + rest.split(end)[1]


def outdated(files):
    """The paths, of a mapping to texts, that do not hold their text."""
    return [path for path, text in files.items() if not path.exists() or path.read_text() != text]
