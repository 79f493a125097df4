"""Opening data files: compressed or not, and what a file is that is no text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import IO, Any

from rapidin_cli.errors import InputError

_HEAD = 16
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
PARQUET, ARROW = "parquet", "arrow"
_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_TABLES = {b"PAR1": PARQUET, b"ARROW1": ARROW}
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive (as .xlsx and .pt files are, too)",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
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
_WRITE_ROWS = "write the rows as JSONL, CSV or Parquet, and name that file in [data] files"
# What the libraries raise of a file that is not, or not wholly, what its name says.
BROKEN = (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError)


def bare_name(path: Path) -> str:
    """Return a file's name without the ending of its compression."""
    return path.stem if path.suffix in COMPRESSED else path.name


def table_kind(path: Path, name: str) -> str:
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
            raise InputError(f"{name} is {what}, not a file of rows", hint=_WRITE_ROWS)
    return path.suffix[1:] if path.suffix in (f".{PARQUET}", f".{ARROW}") else ""


def _head(path: Path) -> bytes:
    if not path.is_file():  # a pipe cannot be read twice
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD)


def _encoding(head: bytes) -> str:
    """Return the encoding of a text that is not UTF-8, by its mark or the zeros between letters."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    low, high = head[0::2], head[1::2]
    if high and not any(high) and all(low):
        return "UTF-16LE"
    if low and not any(low) and all(high):
        return "UTF-16BE"
    return ""


def opened(path: Path, name: str) -> IO[str]:
    """Open a text file, compressed or not.

    Raises:
        InputError: a package is missing for it, or it says that it is not UTF-8.
    """
    head = _head(path)
    if encoding := _encoding(head):
        raise _not_utf8(name, encoding)
    packed = next((ending for start, ending in _PACKED.items() if head.startswith(start)), "")
    match packed or path.suffix:
        case ".gz":
            binary: Any = gzip.open(path)  # noqa: SIM115
        case ".bz2":
            binary = bz2.open(path)  # noqa: SIM115
        case ".xz":
            binary = lzma.open(path)  # noqa: SIM115
        case ".zst":
            binary = _zstandard(path, name)
        case _:
            return path.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _zstandard(path: Path, name: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"{name} needs the package zstandard, which is not installed",
            hint='pip install "rapidin[zst]"',
        ) from None

    def blocks() -> Iterator[bytes]:
        """Frame by frame: its own streams end without a word where a file was cut."""
        with path.open("rb") as file:
            unpack = zstandard.ZstdDecompressor().decompressobj()
            begun = False
            while block := file.read(1 << 20):
                while block:
                    if unpack.eof:
                        unpack = zstandard.ZstdDecompressor().decompressobj()
                    begun = True
                    try:
                        yield unpack.decompress(block)
                    except zstandard.ZstdError as error:
                        raise EOFError(str(error)) from None
                    block = unpack.unused_data if unpack.eof else b""
            if begun and not unpack.eof:
                raise EOFError("it ends in the middle")

    return io.BufferedReader(_Blocks(blocks()))


class _Blocks(io.RawIOBase):
    """A stream of blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, into: Any) -> int:
        """Fill a buffer; 0 at the end."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        size = min(len(into), len(self._rest))
        into[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def not_text(path: Path, name: str, error: UnicodeDecodeError) -> InputError:
    """Say where a text is not UTF-8; its reader only knows the place in its own buffer."""
    with opened(path, name) if path.is_file() else nullcontext() as file:
        for line, text in enumerate(getattr(file, "buffer", ()), 1):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as here:
                if b"\0" in text:
                    return InputError(f"{name} is a binary file, not text", hint=_WRITE_ROWS)
                return _not_utf8(name, where=f"byte {here.start + 1} of line {line}")
    return _not_utf8(name, where=f"byte {error.start + 1}")


def _not_utf8(name: str, encoding: str = "", where: str = "") -> InputError:
    what = f"{name} is {encoding} text, not UTF-8" if encoding else f"{name} is not UTF-8 text"
    known, new = encoding or "ITS-ENCODING", str(Path(name).with_name(f"utf8-{Path(name).name}"))
    return InputError(
        what + (f" ({where})" if where else ""),
        hint=f"convert it: iconv -f {known} -t UTF-8 {quote(name)} > {quote(new)}",
    )
