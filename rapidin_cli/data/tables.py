"""Rows of Arrow and Parquet files, and of folders that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

STATE, SPLITS = "state.json", "dataset_dict.json"
_ROWS = 1024
_TRAIN = "train"


def read_parquet(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of a Parquet file."""
    _need_arrow(name)
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield from _rows(file.iter_batches(_ROWS))
    except pyarrow.ArrowInvalid as error:
        raise _broken(name, "Parquet file", error) from None


def read_arrow(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of an Arrow file, of either format (the stream is that of `datasets`)."""
    _need_arrow(name)
    import pyarrow

    try:
        yield from _rows(_batches(path))
    except pyarrow.ArrowInvalid as error:
        raise _broken(name, "Arrow file", error) from None


def _broken(name: str, what: str, error: Exception) -> InputError:
    return InputError(
        f"{name} is not a valid {what}: {str(error).partition('.')[0]}",
        hint=f"write {name} again",
    )


def splits_of(path: Path) -> list[str]:
    """Return the splits of a folder that `DatasetDict.save_to_disk` wrote; else none."""
    try:
        found = json.loads((path / SPLITS).read_text(encoding="utf-8")).get("splits", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [split for split in found if isinstance(split, str)]


def chosen_split(splits: Sequence[str]) -> str:
    """Return the split that is trained on: `train`, or the only one; else an empty text."""
    if _TRAIN in splits:
        return _TRAIN
    return splits[0] if len(splits) == 1 else ""


def read_folder(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of a folder that `save_to_disk` wrote; of several splits, `train`."""
    if (path / SPLITS).exists():
        splits = splits_of(path)
        chosen = chosen_split(splits)
        if not chosen:
            raise InputError(
                f"{name} is a folder with several splits ({', '.join(splits)})",
                hint=f'name one: [data] files = ["{name}/{splits[0] if splits else _TRAIN}"]',
            )
        path, name = path / chosen, f"{name}/{chosen}"
    if not (path / STATE).exists():
        raise InputError(
            f"{name} is a folder, but not one that save_to_disk of datasets wrote",
            hint=f'name the files in it: [data] files = ["{name}/*.jsonl"]',
        )
    _need_arrow(name)
    import pyarrow

    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = [path / each["filename"] for each in state["_data_files"]]
        yield from _rows(chain.from_iterable(map(_batches, files)))
    except (ValueError, KeyError, TypeError, pyarrow.ArrowInvalid) as error:
        raise InputError(
            f"{name} is not a valid datasets folder: {error}", hint=f"save {name} again"
        ) from None


def _batches(path: Path) -> Iterator[RecordBatch]:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            with ipc.open_file(source) as file:
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
            return
        source.seek(0)
        with ipc.open_stream(source) as stream:
            yield from stream


def _rows(batches: Iterator[RecordBatch]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for value in batch.slice(start, _ROWS).to_pylist():
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
