"""Reading training rows: files, one row after the other, and what is wrong with one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidin_cli.data.files import RowError, read_values
from rapidin_cli.data.prepared import unpacked
from rapidin_cli.data.rows import BadRow, DataSettings, Row
from rapidin_cli.data.shapes import fitting_formats, parse_row, unknown_shape


def read_rows(root: Path, settings: DataSettings) -> Iterator[Row | BadRow]:
    """Yield every row of all files in order, the bad ones as `BadRow`."""
    for _, rows in read_pairs(root, settings):
        yield from rows


def read_pairs(
    root: Path, settings: DataSettings
) -> Iterator[tuple[Any, list[Row] | list[BadRow]]]:
    """Yield each value of the files with its rows: one, or several of a pack of tokens.

    A broken line is a `RowError`, and its row a `BadRow`. A row whose id was used before is
    called by its place.
    """
    seen: set[str] = set()
    for name in settings.files:
        chosen: str | None = None if settings.format == "auto" else settings.format
        for line, value in read_values(root / name, name):
            try:
                if isinstance(value, RowError):
                    raise value
                chosen = chosen or _only_format(value, settings)
                row = _distinct(parse_row(value, chosen, settings, name, line), seen)
                yield value, unpacked(row)
            except RowError as error:
                yield value, [BadRow(name, line, str(error))]


def _only_format(value: Any, settings: DataSettings) -> str:
    """The one shape that a row has.

    Raises:
        RowError: it has none, or could be two.
    """
    fits = fitting_formats(value, settings)
    if not fits:
        raise RowError(unknown_shape(value, settings))
    if len(fits) > 1:
        raise RowError(
            f"the row could be {' or '.join(fits)}: set [data] format in rin.toml to what "
            f'training read, such as format = "{fits[0]}"'
        )
    return fits[0]


def _distinct(row: Row, seen: set[str]) -> Row:
    """Call a row by its place if its id is another one's already, as ids of ShareGPT may be."""
    if row.id in seen:
        row = replace(row, id=f"{row.file}:{row.line}")
    seen.add(row.id)
    return row
