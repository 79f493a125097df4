"""The whole training set of a project."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.files import data_stamp
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow, DataSettings, Row
from rapidin_cli.data.token_store import EncodedRows, TokenStore, name_of
from rapidin_cli.errors import InputError

_RECENT = 2 * 10**9  # nanoseconds
_LIBRARIES = "transformers", "tokenizers"


def load_dataset(
    root: Path,
    settings: DataSettings,
    encoder: Encoder | Callable[[], Encoder],
    *,
    skip_bad: bool = False,
    kept: Path | None = None,
    tokenizer: str = "",
) -> Dataset:
    """Read and tokenise all files.

    Args:
        encoder: turns rows into tokens; made when it is needed.
        kept: folder of encoded rows, which are read instead if they exist; None: nothing is
            kept.
        tokenizer: fingerprint of what turns a row into tokens.

    Raises:
        InputError: no file, no row, or (without `skip_bad`) the first bad row.
    """
    if not settings.files:
        raise InputError("[data] files is empty", hint="list your training data in rin.toml")
    make = encoder if callable(encoder) else lambda: encoder

    def examples(bad: list[BadRow]) -> Iterator[Example]:
        return _examples(root, settings, make, bad, skip_bad=skip_bad)

    rows = None
    if kept is not None:
        with suppress(OSError):  # a full disk, say: nothing is kept
            rows = _encoded(TokenStore(kept), root, settings, tokenizer, examples)
    if rows is not None:
        dataset = Dataset(rows, rows.bad)
        if dataset.unusable and not skip_bad:
            raise _rejected(dataset.unusable[0])
    else:
        bad: list[BadRow] = []
        dataset = Dataset(list(examples(bad)), bad)
        bad.sort(key=lambda each: (settings.files.index(each.file), each.line))
    if not len(dataset.examples):
        first = f": {dataset.bad[0]}" if dataset.bad else ""
        raise InputError(
            f"no usable row in {', '.join(settings.files)}{first}",
            hint="correct [data] in rin.toml",
        )
    return dataset


def _encoded(
    store: TokenStore,
    root: Path,
    settings: DataSettings,
    tokenizer: str,
    examples: Callable[[list[BadRow]], Iterator[Example]],
) -> EncodedRows:
    before = _state(root, settings)
    name = name_of(
        {
            "settings": dataclasses.asdict(settings),
            "tokenizer": tokenizer,
            "libraries": [metadata.version(library) for library in _LIBRARIES],
            "files": before,
        }
    )
    found = store.find(name)
    if found is not None:
        return found
    bad: list[BadRow] = []
    rows = store.write(name, settings.files, examples(bad), bad)
    if [each[:2] for each in _state(root, settings)] != [each[:2] for each in before]:
        raise InputError("the data changed while it was being read", hint="run the command again")
    return rows


def _state(root: Path, settings: DataSettings) -> list[Any]:
    """Sizes and times of the data files."""
    found: list[Any] = []
    for name in settings.files:
        path = root / name
        try:
            stamp = data_stamp(path)
            state = [name, stamp]
            if path.is_file() and time.time_ns() - stamp[0][1] < _RECENT:
                # It may be written to again within the same tick of the file system's clock.
                with path.open("rb") as file:
                    state.append(hashlib.file_digest(file, "sha256").hexdigest())
            found.append(state)
        except OSError:
            found.append([name])  # reading it says why
    return found


def _examples(
    root: Path,
    settings: DataSettings,
    encoder: Callable[[], Encoder],
    bad: list[BadRow],
    *,
    skip_bad: bool,
) -> Iterator[Example]:
    """Yield the usable rows as tokens, and collect the others."""

    def reject(row: BadRow) -> None:
        if not skip_bad and not row.dropped:
            raise _rejected(row)
        bad.append(row)

    def good_rows() -> Iterator[Row]:
        for row in read_rows(root, settings):
            if isinstance(row, BadRow):
                reject(row)
            else:
                yield row

    for example in encoder().examples(good_rows()):
        if isinstance(example, BadRow):
            reject(example)
        else:
            yield example


def _rejected(bad: BadRow) -> InputError:
    return InputError(str(bad), hint="fix the row, or skip such rows with --skip-bad")
