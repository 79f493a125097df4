"""Reading data files, one value at a time: JSONL, JSON, CSV, Parquet, Arrow, datasets folders.

Only a file with one JSON list, or one object that holds the list, is read as a whole.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from rapidin_cli.data.opening import ARROW, BROKEN, PARQUET, bare_name, not_utf8, opened, table_kind
from rapidin_cli.data.tables import read_arrow, read_folder, read_parquet
from rapidin_cli.errors import InputError

TEXTS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
TABLES = (".parquet", ".arrow")
# Names of the list of rows in a file of one object.
_LISTS = ("data", "rows", "train", "examples", "instances", "items", "records", "samples")
_DELIMITERS = ",;\t|"


class RowError(ValueError):
    """Why one row cannot be used; the reader adds where it is."""


def read_values(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of a data file; for tables, the number of the row, from 1.

    A broken line is yielded as `RowError`, so that the caller can go on.

    Raises:
        InputError: the file cannot be read, or the broken part cannot be skipped.
    """
    try:
        if path.is_dir():
            yield from read_folder(path, name)
            return
        kind = table_kind(path)
        if kind == PARQUET:
            yield from read_parquet(path, name)
        elif kind == ARROW:
            yield from read_arrow(path, name)
        else:
            bare = bare_name(path)
            with opened(path) as file:
                if bare.endswith((".csv", ".tsv")):
                    yield from _read_csv(file, name)
                else:
                    yield from _read_json(file, name, one=not bare.endswith(".jsonl"))
    except UnicodeDecodeError as error:
        raise not_utf8(name, at=error.start) from None
    except BROKEN as error:
        kind = path.suffix[1:] or "compressed"
        kind = {"gz": "gzip"}.get(kind, kind)
        raise InputError(
            f"{name} is not a valid {kind} file: {error}", hint="compress it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {name}: {error.strerror or error}",
            hint="correct the path, or [data] files",
        ) from None


def _read_json(file: IO[str], name: str, *, one: bool) -> Iterator[tuple[int, Any]]:
    """Read lines, a list, or (if it may be `one` value) an object that holds the list."""
    # Without seeking, so that a pipe can be read too.
    head = []
    for text in file:
        head.append(text)
        if text.strip():
            break
    start = "".join(head).lstrip()
    if start.startswith("["):
        text = "".join(head) + file.read()
        yield from _read_list(text, text.index("[") + 1, name)
        return
    if one and start.startswith("{"):
        first = _parse_line(start)
        if isinstance(first, RowError) or _holds_list(first):
            text = "".join(head) + file.read()
            at = _list_in(text)
            if at is not None:
                yield from _read_list(text, at, name)
                return
            lines: Iterator[str] = iter(text.splitlines(keepends=True))
            yield from _read_lines(lines)
            return
    yield from _read_lines(chain(head, file))


def _read_lines(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(lines, 1):
        if text.strip():
            yield line, _parse_line(text)


def _parse_line(text: str) -> Any:
    try:
        return json.loads(text.rstrip("\r\n"))  # else an open row breaks in "column 1"
    except json.JSONDecodeError as error:
        return RowError(f"broken JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return RowError("JSON nested too deeply")


def _holds_list(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(name), list) for name in _LISTS)


def _list_in(text: str) -> int | None:
    """Return where the list of rows begins in one JSON object; None if it has none."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    try:
        while True:
            at = _after_blanks(text, at)
            key, at = decoder.raw_decode(text, at)
            at = _after_blanks(text, at, ":")
            if key in _LISTS and text[at : at + 1] == "[":
                return at + 1
            _, at = decoder.raw_decode(text, at)
            at = _after_blanks(text, at, ",")
    except (ValueError, RecursionError, TypeError):
        return None


def _after_blanks(text: str, at: int, mark: str = "") -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t", mark) and at < len(text):
        at += 1
    return at


def _read_list(text: str, position: int, name: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a list whose first begins at or after `position`.

    Each is numbered by its line, which names one row only; where several begin on the first
    line, by its place in the list.
    """
    decoder = json.JSONDecoder()
    line, counted, last, by_line = 1, 0, 0, True
    try:
        while True:
            position = _after_blanks(text, position, ",")
            line += text.count("\n", counted, position)
            counted = position
            if text[position : position + 1] == "]":
                return
            value, position = decoder.raw_decode(text, position)
            if not last:
                following = _after_blanks(text, position, ",")
                by_line = "\n" in text[counted:following]
            last = max(line, last + 1) if by_line else last + 1
            yield last, value
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name}:{error.lineno}: broken JSON list: {error.msg}", hint=f"fix {name}"
        ) from None
    except RecursionError:
        raise InputError(f"{name}: JSON nested too deeply", hint=f"fix {name}") from None


def _read_csv(file: IO[str], name: str) -> Iterator[tuple[int, Any]]:
    """Rows as objects of text; the number is that of the line on which a row begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    head = file.readline()
    # What the names of the columns are divided by, if that is certain.
    marks = [mark for mark in _DELIMITERS if mark in head]
    reader = csv.DictReader(
        chain([head], file), strict=True, delimiter=marks[0] if len(marks) == 1 else ","
    )
    line = 1
    try:
        fields = reader.fieldnames
        if not fields or len(set(fields)) < len(fields):
            raise InputError(
                f"{name}:1: the first line of a CSV file must name its columns, each only once",
                hint=f"fix {name}",
            )
        line = reader.line_num + 1
        for row in reader:
            whole = None not in row and None not in row.values()
            yield line, row if whole else RowError(f"a row must have {len(fields)} cells")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}:{line}: broken CSV: {error}", hint=f"fix {name}") from None


def data_stamp(path: Path) -> list[Any]:
    """Return sizes and times, which show whether a data file has changed."""
    paths = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    stats = [each.stat() for each in paths]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
