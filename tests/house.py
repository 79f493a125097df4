"""The rules of the house that no linter has: `python tests/house.py`, a part of `make check`.

Which way arrows go is import-linter's (pyproject.toml); docs/architecture.md has the reasons.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FUNCTION_LINES, MOST_ENTRIES = 400, 60, 16
PACKAGES = {"rapidin_cli": "rapidin_cli", "rapidin_storage": "storage/rapidin_storage"}


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root, its text and its tree."""

    path: str
    text: str
    tree: ast.Module


def sources(root: Path = ROOT) -> dict[str, Source]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [package, *path.relative_to(root / folder).with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = _source(path, root)
    return found


def _source(path: Path, root: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(root).as_posix(), text, ast.parse(text))


def imported(source: Source, known: Mapping[str, Source]) -> set[str]:
    """The modules that a file imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in known else node.module} & set(known)
    return found


def circle(modules: Mapping[str, Source]) -> list[str]:
    """The modules of a circle of imports; empty if there is none."""
    arrows = {name: imported(source, modules) - {name} for name, source in modules.items()}
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        names: list[str] = error.args[1]
        return names[::-1]
    return []


def too_long(source: Source) -> Iterator[str]:
    """Complain of a long file and of long functions."""
    lines = len(source.text.splitlines())
    if lines > MOST_LINES:
        yield f"{source.path} has {lines} lines, {MOST_LINES} at most"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                where = f"{source.path}:{node.lineno} {node.name}"
                yield f"{where} has {length} lines, {MOST_FUNCTION_LINES} at most"


def borrowed(source: Source) -> Iterator[str]:
    """Complain of private names that are used from another module."""
    modules = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rapidin"):
            modules |= {alias.asname or alias.name for alias in node.names}
            for alias in node.names:
                if _private(alias.name):
                    yield f"{source.path}:{node.lineno} takes {alias.name} of {node.module}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lower = node.value.id.islower()
            if lower and node.value.id in modules and _private(node.attr):
                yield f"{source.path}:{node.lineno} takes {node.value.id}.{node.attr}"


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def complaints(root: Path = ROOT) -> list[str]:
    """Everything that is against the rules."""
    modules = sources(root)
    found = []
    if ring := circle(modules):
        found.append(f"a circle of imports: {' -> '.join(ring)}")
    entries = [e for e in (root / "rapidin_cli").iterdir() if e.name != "__pycache__"]
    if len(entries) > MOST_ENTRIES:
        found.append(f"rapidin_cli has {len(entries)} entries, {MOST_ENTRIES} at most")
    tests = [_source(path, root) for path in sorted((root / "tests").rglob("*.py"))]
    for source in [*modules.values(), *tests]:
        found += too_long(source)
    for source in modules.values():
        found += borrowed(source)
    return found


def main() -> None:
    """Print what is against the rules, and the size of the house."""
    found = complaints()
    print("\n".join(found))
    modules = sources()
    lines = sum(len(source.text.splitlines()) for source in modules.values())
    print(f"{len(modules)} modules, {lines:,} lines, {len(found)} complaints; circles of imports: "
          f"{int(bool(circle(modules)))}")  # fmt: skip
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
