"""Reading data files, one value at a time: JSONL, JSON, CSV, Parquet, Arrow, datasets folders.

Only a file with one JSON list, or one object that holds the list, is read as a whole.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rapidin_cli.data.opening import ARROW, BROKEN, PARQUET, bare_name, not_text, opened, table_kind
from rapidin_cli.data.tables import files_of, read_arrow, read_folder, read_parquet
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
        kind = table_kind(path, name)
        if kind == PARQUET:
            yield from read_parquet(path, name)
        elif kind == ARROW:
            yield from read_arrow(path, name)
        else:
            bare = bare_name(path)
            with opened(path, name) as file:
                if bare.endswith((".csv", ".tsv")):
                    yield from _read_csv(file, name)
                else:
                    yield from _read_json(file, name, one=not bare.endswith(".jsonl"))
    except UnicodeDecodeError as error:
        raise not_text(path, name, error) from None
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
    head: list[str] = []
    start = _next_text(file, head)
    if start.startswith("["):
        text = "".join(head) + file.read()
        end = yield from _read_list(text, text.index("[") + 1, name)
        _nothing_after(text, end, name)
        return
    if one and start.startswith("{") and _is_one_object(start, _next_text(file, head)):
        yield from _read_whole("".join(head) + file.read(), name)
        return
    yield from _read_lines(chain(head, file))


def _is_one_object(start: str, following: str) -> bool:
    """Whether a first line is a whole file, or the beginning of an object; else rows are lines."""
    if isinstance(_parse_line(start), RowError):
        return _is_open(start) or not following.startswith("{")
    return not following


def _is_open(line: str) -> bool:
    return line.rstrip().endswith(("{", "[", ":", ","))


def rows_begin(text: str) -> int | None:
    """Return where the list of rows begins in a JSON file, of which `text` may be the beginning.

    None: its rows are lines, or there is no list of rows.
    """
    head: list[str] = []
    lines = io.StringIO(text, newline="")
    start = _next_text(lines, head)
    if start.startswith("["):
        return text.index("[") + 1
    if not start.startswith("{") or not _is_one_object(start, _next_text(lines, head)):
        return None
    try:
        key, at = _next_list(text, text.index("{") + 1)
    except (ValueError, RecursionError):
        return None
    return at if key else None


def _next_text(file: IO[str], head: list[str]) -> str:
    """Return the next line that is not blank, without its indentation; `head` keeps all lines."""
    for text in file:
        head.append(text)
        if text.strip():
            return text.lstrip()
    return ""


def _read_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(lines, 1):
        if text.strip():
            yield line, _parse_line(text)


def _parse_line(text: str) -> Any:
    try:
        return json.loads(text.rstrip("\r\n"))  # else an open row breaks in "column 1"
    except json.JSONDecodeError as error:
        if "\0" in text:
            return RowError("it contains NUL bytes, as a crash or a full disk leaves them")
        return RowError(f"broken JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return RowError("JSON nested too deeply")


def _read_whole(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Read an object that holds the list of rows, or else objects one after the other."""
    try:
        key, at = _next_list(text, text.index("{") + 1)
    except (ValueError, RecursionError):
        key, at = "", 0
    if not key:
        yield from _read_objects(text, name)
        return
    at = yield from _read_list(text, at, name)
    try:
        other, at = _next_list(text, at)
    except json.JSONDecodeError as error:
        raise _broken(name, error) from None
    if other:
        raise InputError(
            f"{name} holds two lists of rows, {key!r} and {other!r}",
            hint="keep the one that was trained on",
        )
    _nothing_after(text, at, name)


def _next_list(text: str, at: int) -> tuple[str, int]:
    """Return name and beginning of the next list of rows in an object, or "" and its end.

    Raises:
        ValueError, RecursionError: the object is broken.
    """
    decoder = json.JSONDecoder()
    while True:
        at = _after_blanks(text, at, ",")
        if text[at : at + 1] == "}":
            return "", at + 1
        key, at = decoder.raw_decode(text, at)
        at = _after_blanks(text, at, ":")
        if isinstance(key, str) and key in _LISTS and text[at : at + 1] == "[":
            first = _after_blanks(text, at + 1)
            if text[first : first + 1] == "{":
                return key, at + 1
        _, at = decoder.raw_decode(text, at)


def _read_objects(text: str, name: str) -> Iterator[tuple[int, Any]]:
    decoder, at, line = json.JSONDecoder(), _after_blanks(text, 0), 1
    rows = counted = 0
    try:
        while at < len(text):
            line += text.count("\n", counted, at)
            counted = at
            value, at = decoder.raw_decode(text, at)
            rows += 1
            yield line, value
            at = _after_blanks(text, at)
    except json.JSONDecodeError as error:
        head: list[str] = []
        file = io.StringIO(text, newline="")
        open_, following = _is_open(_next_text(file, head)), _next_text(file, head)
        if rows or (open_ and isinstance(_parse_line(following), RowError)):
            raise _broken(name, error) from None
        yield from _read_lines(chain(head, file))  # the first line is a row, and broken
    except RecursionError:
        raise InputError(f"{name}: JSON nested too deeply", hint=f"fix {name}") from None


def _after_blanks(text: str, at: int, mark: str = "") -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t", mark) and at < len(text):
        at += 1
    return at


def _nothing_after(text: str, at: int, name: str) -> None:
    """Refuse what follows a list, which would be left out."""
    at = _after_blanks(text, at)
    if at < len(text):
        raise InputError(
            f"{name}:{text.count(chr(10), 0, at) + 1}: there is more after the end of the list",
            hint="put all rows into one list, or each on a line of its own",
        )


def _broken(name: str, error: json.JSONDecodeError, what: str = "JSON") -> InputError:
    return InputError(f"{name}:{error.lineno}: broken {what}: {error.msg}", hint=f"fix {name}")


def _read_list(text: str, position: int, name: str) -> Generator[tuple[int, Any], None, int]:
    """Yield the values of a list whose first begins at or after `position`; return where it ends.

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
                return position + 1
            value, position = decoder.raw_decode(text, position)
            if not last:
                following = _after_blanks(text, position, ",")
                by_line = "\n" in text[counted:following]
            last = max(line, last + 1) if by_line else last + 1
            yield last, value
    except json.JSONDecodeError as error:
        raise _broken(name, error, "JSON list") from None
    except RecursionError:
        raise InputError(f"{name}: JSON nested too deeply", hint=f"fix {name}") from None


def _read_csv(file: IO[str], name: str) -> Iterator[tuple[int, Any]]:
    """Rows as objects of text; the number is that of the line on which a row begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    head = list(islice(file, 2))
    reader = csv.DictReader(chain(head, file), strict=True, delimiter=_delimiter(head))
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
            cells = f"{len(fields)} cell" + "s" * (len(fields) > 1)
            yield line, row if whole else RowError(f"a row must have {cells}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}:{line}: broken CSV: {error}", hint=f"fix {name}") from None


def _delimiter(head: Sequence[str]) -> str:
    """What divides the columns: the mark that makes as many of the first row as of the names.

    Of several it is the one that makes most.
    """

    def cells(line: str, mark: str) -> int:
        try:
            return len(next(csv.reader([line], strict=True, delimiter=mark), []))
        except csv.Error:
            return 0

    found = {mark: [cells(line, mark) for line in head] for mark in _DELIMITERS}
    names = {mark: counts[0] for mark, counts in found.items() if counts and counts[0] > 1}
    even = {mark: count for mark, count in names.items() if len(set(found[mark])) == 1}
    likely = even or names
    return max(likely, key=lambda mark: likely[mark], default=",")


def data_stamp(path: Path) -> list[Any]:
    """Return sizes and times of all files that are read, which show whether they have changed."""
    stats = [each.stat() for each in (files_of(path) if path.is_dir() else [path])]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
