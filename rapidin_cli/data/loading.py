"""The whole training set of a project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset
from rapidin_cli.data.reading import BadRow, DataSettings, Row, read_rows
from rapidin_cli.errors import InputError


def load_dataset(
    root: Path, settings: DataSettings, encoder: Encoder, *, skip_bad: bool = False
) -> Dataset:
    """Read and tokenise all files.

    Raises:
        InputError: no file, no row, or (without `skip_bad`) the first bad row.
    """
    if not settings.files:
        raise InputError("[data] files is empty", hint="name your training data in rin.toml")
    dataset = Dataset()

    def good_rows() -> Iterator[Row]:
        for row in read_rows(root, settings):
            if isinstance(row, BadRow):
                _reject(row, dataset, skip_bad)
            else:
                yield row

    for example in encoder.examples(good_rows()):
        if isinstance(example, BadRow):
            _reject(example, dataset, skip_bad)
        else:
            dataset.examples.append(example)
    dataset.bad.sort(key=lambda bad: (settings.files.index(bad.file), bad.line))
    if not dataset.examples:
        raise InputError(
            f"no usable row in {', '.join(settings.files)}",
            hint="correct [data] in rin.toml",
        )
    return dataset


def _reject(bad: BadRow, dataset: Dataset, skip_bad: bool) -> None:
    if not skip_bad:
        raise InputError(str(bad), hint="repair the row, or leave such rows out with --skip-bad")
    dataset.bad.append(bad)
