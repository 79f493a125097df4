"""The documents as a reader meets them: pages, their links, and the blocks of code in order."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "storage/FORMAT.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d[\d,.]*(?![A-Za-z_])")
_UNIT = re.compile(r"0 (?:s|min|h|B|kB|MB|GB)\b")
_FEWEST = 12


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found.group(1), found.group(2), text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def headings(page: Path) -> list[str]:
    """Of all levels, without their marks."""
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)
    }


def section(page: Path, title: str) -> str:
    """The text under the heading that begins so; empty if there is none."""
    text = page.read_text(encoding="utf-8")
    head = rf"^#+ {re.escape(title)}(?!\w)[^\n]*\n"
    found = re.search(rf"{head}(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Every heading, without its marks, with the text up to the next one."""
    parts = re.split(r"^#+ (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def cells(page: Path) -> Iterator[tuple[int, str]]:
    """The cells of the tables but for heads and first columns, each with the number of its line."""
    rule = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("|"):
            rule = False
        elif line.startswith("|--"):
            rule = True
        elif rule:
            yield from ((number, cell.strip()) for cell in line.strip("|").split("|")[1:])


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a `console` block, each with what it printed."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = 1 + next(n for n, line in enumerate(lines) if not line.endswith("\\"))
        yield "\n".join(lines[:length]), "\n".join(lines[length:]).strip()


def replace_sample(page: Path, command: str, shown: str, printed: str) -> None:
    """Put what a command printed into the page, in the place of what stands there."""
    text = page.read_text(encoding="utf-8")
    old, new = (f"$ {command}\n{o.strip()}".rstrip() + "\n" for o in (shown, printed))
    page.write_text(text.replace(old, new, 1), encoding="utf-8")


def is_output(shown: str, printed: str) -> bool:
    """Whether a sample is what was printed, up to numbers and hashes; `...` stands for lines."""
    parts = re.split(r"^\.\.\.$", _neutral(shown), flags=re.MULTILINE)
    wanted = "(?s:.*)".join(re.escape(part.strip("\n")) for part in parts)
    return re.fullmatch(wanted, _neutral(printed)) is not None


def _neutral(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    # A stage begins: on a terminal, which is what pages show, that is a bar.
    lines = [line for line in lines if not line.endswith(" ...")]
    hidden = re.sub(r"\b(?=\w*\d)[0-9a-f]{12,64}\b", "HASH", "\n".join(lines))
    return re.sub(r"\s*\bS?UNIT\b", " UNIT", _UNIT.sub("UNIT", _NUMBER.sub("0", hidden)))


@cache
def sentences() -> set[tuple[str, int]]:
    """Every text in the source, as a pattern in which what is filled in may be anything.

    With each the length of what is constant.
    """
    found = set()
    for folder in ("rapidin_cli", "storage/rapidin_storage"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        str(each.value) if isinstance(each, ast.Constant) else None
                        for each in node.values
                    ]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts = [node.value]
                else:
                    continue
                size = sum(len(part) for part in parts if part)
                if size >= _FEWEST:
                    pattern = "".join(".+?" if p is None else re.escape(p) for p in parts)
                    found.add((pattern, size))
    return found


def is_printed(text: str) -> bool:
    """Whether the program can print a text: it ends with a sentence of the source, filled in.

    Sentences of which a sixth is constant, so that `cannot read ...` does not stand for all.
    """
    return any(
        re.search(f"(?:{pattern})$", text) for pattern, size in sentences() if 6 * size > len(text)
    )
