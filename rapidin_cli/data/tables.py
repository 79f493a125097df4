"""Rows of Arrow and Parquet files, and of folders that `datasets` saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

STATE, SPLITS = "state.json", "dataset_dict.json"
_ROWS = 1024
_TRAIN = "train"
_ROWS_IN = (".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_MOST_LISTED = 5000


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
        kinds = [f"*{kind}" for kind in _endings(path)] or ["*.jsonl"]
        raise InputError(
            f"{name} is a folder, but not one that save_to_disk of datasets wrote",
            hint=f'name the files in it: [data] files = ["{name}/{kinds[0]}"]',
        )
    _need_arrow(name)
    import pyarrow

    try:
        files = _tables_of(path)
        for file in files:
            if not file.exists():
                raise InputError(
                    f"{name} lacks {file.name}, which its {STATE} names", hint=f"save {name} again"
                )
        yield from _rows(chain.from_iterable(map(_batches, files)))
    except (ValueError, KeyError, TypeError, pyarrow.ArrowInvalid) as error:
        raise InputError(
            f"{name} is not a valid datasets folder: {error}", hint=f"save {name} again"
        ) from None


def _tables_of(path: Path) -> list[Path]:
    """Return the Arrow files of a datasets folder, in order.

    Raises:
        ValueError, KeyError, TypeError: its description is broken, or chooses among the rows.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise ValueError("an old version of datasets saved it with a list of the rows to take")
    return [path / each["filename"] for each in state["_data_files"]]


def _endings(path: Path) -> list[str]:
    """Return the endings of the files in a folder, the most frequent first."""
    names = [each.name for each in islice(path.iterdir(), _MOST_LISTED) if each.is_file()]
    found = Counter("".join(Path(name).suffixes[-2:]) for name in names)
    return [ending for ending, _ in found.most_common() if ending.startswith(_ROWS_IN)]


def files_of(path: Path) -> list[Path]:
    """Return all files that decide the rows of a folder; what is broken is left to reading."""
    found = [path / SPLITS]
    if found[0].exists():
        path /= chosen_split(splits_of(path))
    found.append(path / STATE)
    try:
        found += _tables_of(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found.append(path)
    return [each for each in found if each.exists()]


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
