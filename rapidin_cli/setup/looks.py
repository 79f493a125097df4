"""A first look at a data file: the shape of its rows, or why there is none."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rapidin_cli.data.files import TABLES, RowError, read_values, rows_begin
from rapidin_cli.data.opening import bare_name
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.data.shapes import fitting_formats, parse_row
from rapidin_cli.data.tables import chosen_split, splits_of
from rapidin_cli.errors import InputError

_HEAD_BYTES = 1 << 20
_ROWS = 20
# A history or tools need a chat template, which is chosen later.
_SETTINGS = DataSettings(template="chat")
_LONGEST_WORD = 40  # of JSON: a number, \u escapes


@dataclass(frozen=True)
class Look:
    """What the first rows of a file are.

    Attributes:
        shape: of the first that can be used; empty if none can.
        also: another shape that it could have.
        turns: whether its prompt is a list of messages.
        split: of a folder with several, the one that is read.
        problem: why none can be used, with its place; empty if it is no data at all.
        hint: what to do about it.
        unknown: whether the rows can be read, and only their fields are of no known shape.
        likely: whether it was meant to be data for certain; a list of objects may be anything.
        skipped: of the rows before it, why the first cannot be used.
    """

    shape: str = ""
    also: str = ""
    turns: bool = False
    split: str = ""
    problem: str = ""
    hint: str = ""
    unknown: bool = False
    likely: bool = True
    skipped: str = ""

    @property
    def about(self) -> str:
        """For people."""
        split = f" of the split {self.split}" if self.split else ""
        also = f"; {self.skipped}" if self.skipped else ""
        return f"{self.shape or 'unknown'} rows{split}{also}"

    @property
    def reason(self) -> str:
        """The problem with what to do, for people."""
        return f"{self.problem}; {self.hint}" if self.hint else self.problem


def look_at(path: Path, name: str, *, given: bool = False) -> Look:
    """Look at the first rows of a file or folder.

    Args:
        name: what messages call it.
        given: somebody says that it is data, so what is wrong with it is always said.
    """
    lists: list[str] = []
    first, hint, seen, objects, rows = "", "", False, 0, 0
    try:
        for line, value in islice(_values(path, name), _ROWS):
            fits = fitting_formats(value, _SETTINGS)
            seen = seen or bool(fits)
            rows += 1
            objects += isinstance(value, dict)
            lists = lists or _lists_in(value)
            reason = _problem(value, fits, name, line)
            if not reason:
                split = chosen_split(splits_of(path)) if path.is_dir() else ""
                turns = isinstance(value.get(_SETTINGS.prompt_field), list)
                also = " and ".join(fits[1:])
                return Look(fits[0], also, turns, split, skipped=first)
            first = first or f"{name}:{line}: {reason}"
    except InputError as error:
        if not first:
            first, hint = error.message, error.hint or ""
        seen = seen or path.suffix != ".json"
    except (OSError, ValueError, RecursionError) as error:
        first = first or f"{name} cannot be read: {error}"
    if not rows and not first:
        first = f"{name} has no rows"
    bare = bare_name(path)
    wrapped = rows == 1 and bool(lists) and bare.endswith(".json") and not seen
    if wrapped:
        first = (
            f"{name} is one object: its list of rows must be called data or train, not {lists[0]}"
        )
    # A .json may be anything; other files that hold no rows were meant to.
    likely = given or seen or bare.endswith((".jsonl", *TABLES))
    doubtful = objects > 1 or wrapped or bare.endswith((".csv", ".tsv")) or _is_list(path)
    unknown = objects == rows > 0 and not seen and not hint and not wrapped
    if not likely and not doubtful:
        return Look()
    return Look(problem=first, hint=hint, unknown=unknown, likely=likely)


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


def _lists_in(value: Any) -> list[str]:
    """Return the names of the fields that could be lists of rows."""
    if not isinstance(value, dict):
        return []
    fields = {name: each for name, each in value.items() if isinstance(each, list) and each}
    return [name for name, each in fields.items() if isinstance(each[0], dict)]


def _is_list(path: Path) -> bool:
    """Whether a JSON file holds a list of objects, be it broken."""
    if not path.is_file() or path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return re.match(rb"\s*\[\s*\{", file.read(_HEAD_BYTES)) is not None


def _values(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """The first values; of a long JSON list only the beginning is read."""
    at, text = None, ""
    if path.is_file() and path.suffix == ".json" and path.stat().st_size > _HEAD_BYTES:
        with path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("utf-8-sig", errors="ignore")
        at = rows_begin(text)
    if at is None:
        yield from read_values(path, name)
        return
    decoder = json.JSONDecoder()
    while True:
        while text[at : at + 1] in (" ", "\n", "\r", "\t", ","):
            at += 1
        line = text.count("\n", 0, at) + 1
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            if error.pos + _LONGEST_WORD > len(text) or error.msg.startswith("Unterminated"):
                return  # cut where the head ends
            raise InputError(
                f"{name}:{error.lineno}: broken JSON list: {error.msg}", hint=f"fix {name}"
            ) from None
        yield line, value
