"""A first look at a data file: the shape of its rows, or why there is none."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rapidin_cli.data.files import TABLES, RowError, read_values
from rapidin_cli.data.opening import COMPRESSED, bare_name
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.data.shapes import fitting_formats, parse_row
from rapidin_cli.data.tables import chosen_split, splits_of
from rapidin_cli.errors import InputError

_HEAD_BYTES = 1 << 20
_ROWS = 20
# A history or tools need a chat template, which is chosen later.
_SETTINGS = DataSettings(template="chat")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\..+)")


@dataclass(frozen=True)
class Look:
    """What the first rows of a file are.

    Attributes:
        shape: of the first that can be used; empty if none can.
        also: another shape that it could have.
        turns: whether its prompt is a list of messages.
        split: of a folder with several, the one that is read.
        problem: why none can be used, with its place; empty if it is no data at all.
        skipped: of the rows before it, why the first cannot be used.
    """

    shape: str = ""
    also: str = ""
    turns: bool = False
    split: str = ""
    problem: str = ""
    skipped: str = ""

    @property
    def about(self) -> str:
        """For people."""
        split = f" of the split {self.split}" if self.split else ""
        also = f"; {self.skipped}" if self.skipped else ""
        return f"{self.shape or 'unknown'} rows{split}{also}"


def look_at(path: Path, *, given: bool = False) -> Look:
    """Look at the first rows of a file or folder.

    Args:
        given: somebody says that it is data, so what is wrong with it is always said.
    """
    first, seen = "", False
    try:
        for line, value in islice(_values(path), _ROWS):
            fits = fitting_formats(value, _SETTINGS)
            seen = seen or bool(fits)
            reason = _problem(value, fits, path.name, line)
            if not reason:
                split = chosen_split(splits_of(path)) if path.is_dir() else ""
                turns = isinstance(value.get(_SETTINGS.prompt_field), list)
                also = " and ".join(fits[1:])
                return Look(fits[0], also, turns, split, skipped=first)
            first = first or f"{path.name}:{line}: {reason}"
    except InputError as error:
        first = first or error.message
        seen = seen or path.suffix != ".json"
    except (OSError, ValueError, RecursionError):
        return Look()
    # A .json may be anything; other files that hold no rows were meant to.
    likely = given or seen or bare_name(path).endswith((".jsonl", *TABLES))
    return Look(problem=first if likely else "")


def _problem(value: Any, fits: list[str], name: str, line: int) -> str:
    if isinstance(value, RowError):
        return str(value)
    try:
        parse_row(value, fits[0] if fits else "text", _SETTINGS, name, line)
    except RowError as error:
        return str(error) if fits else _fields(value)
    return ""


def _fields(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a row must be a JSON object, not {type(value).__name__}"
    names = ", ".join(map(repr, list(value)[:6])) or "no fields"
    return f"its fields ({names}) are of no known shape: [data] prompt_field and so on name others"


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """The first values; of a plain JSON file only its beginning is read."""
    plain = path.is_file() and path.suffix not in (*COMPRESSED, *TABLES, ".csv", ".tsv")
    if not plain or path.stat().st_size <= _HEAD_BYTES:
        yield from read_values(path, path.name)
        return
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.decode("utf-8-sig", errors="ignore")
    opening = re.match(r"\s*(\[|\{[^\[{]*\[)", text)
    if opening is None or path.suffix == ".jsonl" or "\n{" in text:
        yield from islice(read_values(path, path.name), _ROWS)
        return
    decoder, at = json.JSONDecoder(), opening.end()
    while True:  # ends in a ValueError where the head is cut
        while text[at : at + 1] in (" ", "\n", "\r", "\t", ","):
            at += 1
        line = text.count("\n", 0, at) + 1
        value, at = decoder.raw_decode(text, at)
        yield line, value


def shards_of(path: Path) -> tuple[list[Path], int]:
    """Return all parts of a file that is named NAME-0000N-of-0000M, and how many are missing.

    Of any other file, itself.
    """
    found = _SHARD.fullmatch(path.name)
    if found is None:
        return [path], 0
    stem, _, count, ending = found.groups()
    wanted = [path.with_name(f"{stem}-{n:05}-of-{count}{ending}") for n in range(int(count))]
    there = [each for each in wanted if each.exists()]
    return there, len(wanted) - len(there)
