"""Opening data files: compressed or not, and what a file is that is no text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

from rapidin_cli.errors import InputError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
PARQUET, ARROW = "parquet", "arrow"
_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_TABLES = {b"PAR1": PARQUET, b"ARROW1": ARROW}
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF",
    **{bytes([0x80, version]): "a Python pickle" for version in (2, 3, 4, 5)},
}
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# What the libraries raise of a file that is not, or not wholly, what its name says.
BROKEN = (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError)


def bare_name(path: Path) -> str:
    """Return a file's name without the ending of its compression."""
    return path.stem if path.suffix in COMPRESSED else path.name


def table_kind(path: Path) -> str:
    """Return PARQUET, ARROW or an empty text, by the first bytes and else by the name.

    Raises:
        InputError: another binary format.
    """
    head = _head(path)
    for start, kind in _TABLES.items():
        if head.startswith(start):
            return kind
    for start, what in _OTHERS.items():
        if head.startswith(start):
            raise InputError(
                f"{path.name} is {what}, not a file of rows",
                hint="write the rows as JSONL, CSV or Parquet, and name that file in [data] files",
            )
    return path.suffix[1:] if path.suffix in (f".{PARQUET}", f".{ARROW}") else ""


def _head(path: Path) -> bytes:
    if not path.is_file():  # a pipe cannot be read twice
        return b""
    with path.open("rb") as file:
        return file.read(16)


def opened(path: Path) -> IO[str]:
    """Open a text file, compressed or not.

    Raises:
        InputError: a package is missing for it, or it says that it is not UTF-8.
    """
    head = _head(path)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            raise not_utf8(path.name, encoding)
    packed = next((ending for start, ending in _PACKED.items() if head.startswith(start)), "")
    match packed or path.suffix:
        case ".gz":
            binary: Any = gzip.open(path)  # noqa: SIM115
        case ".bz2":
            binary = bz2.open(path)  # noqa: SIM115
        case ".xz":
            binary = lzma.open(path)  # noqa: SIM115
        case ".zst":
            binary = _zstandard(path)
        case _:
            return path.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"{path.name} needs the package zstandard, which is not installed",
            hint='pip install "rapidin[zst]"',
        ) from None

    class Reader(io.BufferedIOBase):
        """A stream whose mistakes are those of other kinds of compression."""

        def __init__(self) -> None:
            self._file = path.open("rb")
            unpack = zstandard.ZstdDecompressor()
            self._stream = unpack.stream_reader(self._file, read_across_frames=True)

        def readable(self) -> bool:
            return True

        def read1(self, size: int | None = -1, /) -> bytes:
            return self.read(size)

        def read(self, size: int | None = -1, /) -> bytes:
            try:
                data: bytes = self._stream.read(-1 if size is None else size)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            return data

        def close(self) -> None:
            self._file.close()
            super().close()

    return Reader()


def not_utf8(name: str, encoding: str = "", at: int | None = None) -> InputError:
    """Say that a text is in another encoding."""
    what = f"{name} is {encoding} text, not UTF-8" if encoding else f"{name} is not UTF-8 text"
    known = encoding or "ITS-ENCODING"
    return InputError(
        what + (f" (byte {at})" if at is not None else ""),
        hint=f"convert it: iconv -f {known} -t UTF-8 {name} > utf8-{Path(name).name}",
    )
