"""What the README links to is in the source distribution."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def missing(text, included):
    """The files of this repository that a page links to, or shows, and that are not there or not included."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link}
    return {link for link in links if not (ROOT / link).exists() or link.partition("/")[0] not in included}


def test_what_the_readme_links_to_is_distributed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not missing(readme, included)
    assert missing(readme, [name for name in included if name != "CONTRIBUTING.md"]) == {"CONTRIBUTING.md"}
    assert missing("[a](docs/absent.md)", included) == {"docs/absent.md"}
