"""Reading data files, one value at a time: JSONL, JSON lists, CSV, Parquet, datasets folders.

The name decides which it is: `.csv`, `.parquet`, a folder that `datasets` saved; anything else is
JSON. JSON and CSV may be gzipped (`.gz`). Only a file with one JSON list is read as a whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rapidin_cli.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_ARROW_ROWS = 1024
_ARROW_STATE = "state.json"
_SPLITS = "dataset_dict.json"
TABLES = (".csv", ".parquet")


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
            yield from _read_folder(path, name)
        elif path.suffix == ".parquet":
            yield from _read_parquet(path, name)
        else:
            with _opened(path) as file:
                table = path.name.removesuffix(".gz").endswith(".csv")
                yield from (_read_csv if table else _read_json)(file, name)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start})", hint="convert it to UTF-8"
        ) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(
            f"{name} is not a valid gzip file: {error}", hint="compress it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {name}: {error.strerror or error}",
            hint="correct the path, or [data] files",
        ) from None


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_json(file: IO[str], name: str) -> Iterator[tuple[int, Any]]:
    # Without seeking, so that a pipe can be read too.
    head = []
    for text in file:
        head.append(text)
        if text.strip():
            break
    if "".join(head).lstrip().startswith("["):
        yield from _read_list("".join(head) + file.read(), name)
        return
    for line, text in enumerate(chain(head, file), 1):
        if text.strip():
            yield line, _parse_line(text)


def _parse_line(text: str) -> Any:
    try:
        return json.loads(text.rstrip("\r\n"))  # else an open row breaks in "column 1"
    except json.JSONDecodeError as error:
        return RowError(f"broken JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return RowError("JSON nested too deeply")


def _read_list(text: str, name: str) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    position, line, counted = text.index("[") + 1, 1, 0
    try:
        while True:
            while text[position : position + 1] in (" ", "\n", "\r", "\t", ","):
                position += 1
            line += text.count("\n", counted, position)
            counted = position
            if text[position : position + 1] == "]":
                return
            value, position = decoder.raw_decode(text, position)
            yield line, value
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name}:{error.lineno}: broken JSON list: {error.msg}", hint=f"fix {name}"
        ) from None
    except RecursionError:
        raise InputError(f"{name}: JSON nested too deeply", hint=f"fix {name}") from None


def _read_csv(file: IO[str], name: str) -> Iterator[tuple[int, Any]]:
    """Rows as objects of text; the number is that of the line on which a row begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(file, strict=True)
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


def _read_parquet(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    _need_arrow(name)
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield from _rows(file.iter_batches(_ARROW_ROWS))
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"{name} is not a valid Parquet file: {str(error).partition('.')[0]}",
            hint=f"write {name} again",
        ) from None


def _read_folder(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Rows of a folder that `Dataset.save_to_disk` wrote."""
    if (path / _SPLITS).exists():
        splits = json.loads((path / _SPLITS).read_text(encoding="utf-8")).get("splits", [])
        raise InputError(
            f"{name} is a folder with several splits ({', '.join(splits)})",
            hint=f'name one: [data] files = ["{name}/{splits[0] if splits else "train"}"]',
        )
    if not (path / _ARROW_STATE).exists():
        raise InputError(
            f"{name} is a folder, but not one that datasets.Dataset.save_to_disk wrote",
            hint="list data files in [data] files",
        )
    _need_arrow(name)
    import pyarrow

    try:
        state = json.loads((path / _ARROW_STATE).read_text(encoding="utf-8"))
        files = [path / each["filename"] for each in state["_data_files"]]
        yield from _rows(chain.from_iterable(map(_arrow_batches, files)))
    except (ValueError, KeyError, TypeError, pyarrow.ArrowInvalid) as error:
        raise InputError(
            f"{name} is not a valid datasets folder: {error}", hint=f"save {name} again"
        ) from None


def _arrow_batches(path: Path) -> Iterator[RecordBatch]:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source, ipc.open_stream(source) as stream:
        yield from stream


def _rows(batches: Iterator[RecordBatch]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ARROW_ROWS):
            for value in batch.slice(start, _ARROW_ROWS).to_pylist():
                number += 1
                yield number, value


def _need_arrow(name: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(
            f"{name} needs the package pyarrow, which is not installed",
            hint='pip install "rapidin[parquet]"',
        ) from None


def data_stamp(path: Path) -> list[Any]:
    """Return sizes and times, which show whether a data file has changed."""
    paths = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    stats = [each.stat() for each in paths]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
