"""docs/_generated/performance*, and a table of README.md: the tables and plots of a run of the benchmarks.

    python docs/scripts/performance.py --write    # from docs/_generated/performance.json
    python docs/scripts/performance.py --check    # exit 1 where one of them is made from something else
    python docs/scripts/performance.py --write --folder build/bench

Nothing is measured here: `nox -s bench` does that.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import gpu, linear, planes, plots, tables, ways
from docs.scripts import GENERATED, ROOT, arguments, marked, outdated

README = ROOT / "README.md"
TABLES = {"ways": ways, "planes": planes}


def mark_of(text):
    """What a picture carries in its metadata: the digest of the result that it shows."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def pages(result):
    return {f"performance_{make.__name__}.md": make(result) for make in tables.PAGES}


def pictures_stale(folder, pictures, source, text):
    mark = mark_of(text).encode()
    paths = [folder / f"{name}.svg" for name in pictures]
    wrong = [path for path in paths if not path.exists() or mark not in path.read_bytes()]
    return [f"{path.name} is not made from {source.name}" for path in wrong]


def pages_stale(folder, made, source):
    wrong = outdated({folder / name: page for name, page in made.items()})
    return [f"{path.name} is not made from {source.name}" for path in wrong]


def readme(page):
    return {README: marked(README.read_text(), "speed", page)}


def readme_stale(source):
    page = tables.speed(json.loads(source.read_text()))
    return [f"{path.name} is not made from {source.name}" for path in outdated(readme(page))]


def linear_stale(folder):
    """The same for what benchmarks/linear.py measured."""
    source = folder / "linear.json"
    if not source.exists():
        return [f"{source.name} is missing: `python -m benchmarks.linear` measures it"]
    text = source.read_text()
    made = {"linear.md": linear.page(json.loads(text))}
    return pages_stale(folder, made, source) + pictures_stale(folder, plots.PICTURES_OF_LINEAR, source, text)


def tables_stale(folder):
    """The same for what benchmarks/ways.py and planes.py measured."""
    found = []
    for name, module in TABLES.items():
        source = folder / f"{name}.json"
        if source.exists():
            found += pages_stale(folder, {f"{name}.md": module.page(json.loads(source.read_text()))}, source)
        else:
            found.append(f"{source.name} is missing: `python -m benchmarks.{name}` measures it")
    return found


def gpu_page(folder):
    """What benchmarks/gpu.py, and planes.py on a GPU, measured, or that they have not been run."""
    paths = (folder / f"{name}.json" for name in ("gpu", "gpu_sizes", "planes_gpu"))
    found, sizes, in_planes = (json.loads(path.read_text()) if path.exists() else None for path in paths)
    return {"gpu.md": gpu.page(found, sizes), "planes_gpu.md": planes.page_of_gpu(in_planes)}


def stale(folder):
    """What is not made from the result in the folder."""
    source = folder / "performance.json"
    if not source.exists():
        return [f"{source.name} is missing: `nox -s bench` measures it"]
    text = source.read_text()
    result = json.loads(text)
    found = [f"{source.name} is of a quick run: `nox -s bench` measures"] if result["quick"] else []
    found += pages_stale(folder, pages(result), source)
    return found + pictures_stale(folder, plots.PICTURES, source, text)


def write(folder):
    text = (folder / "performance.json").read_text()
    result = json.loads(text)
    for name, page in pages(result).items():
        (folder / name).write_text(page)
    plots.save(plots.PICTURES, result, folder, mark_of(text))
    for name, text in gpu_page(folder).items():
        (folder / name).write_text(text)
    if folder == GENERATED:
        for path, page in readme(tables.speed(result)).items():
            path.write_text(page)
    if (folder / "linear.json").exists():
        text = (folder / "linear.json").read_text()
        result = json.loads(text)
        (folder / "linear.md").write_text(linear.page(result))
        plots.save(plots.PICTURES_OF_LINEAR, result, folder, mark_of(text))
    for name, module in TABLES.items():
        if (folder / f"{name}.json").exists():
            (folder / f"{name}.md").write_text(module.page(json.loads((folder / f"{name}.json").read_text())))


def main():
    parser, _ = arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=GENERATED, help="where performance.json is")
    options = parser.parse_args()
    if options.write:
        write(options.folder)
        return
    found = stale(options.folder)
    if options.folder == GENERATED:
        found += readme_stale(GENERATED / "performance.json") + linear_stale(GENERATED) + tables_stale(GENERATED)
        found += pages_stale(GENERATED, gpu_page(GENERATED), GENERATED / "gpu.json")
    sys.exit("\n".join(["the page's tables are stale: run this with --write", *found]) if found else 0)


if __name__ == "__main__":
    main()
