"""The training data as tokens, on disk: read and tokenised once, then mapped into memory.

Reading 52,000 rows takes a tokenizer a minute, and every command needs their tokens. So they
are kept under `.rin/data/`, in a folder named by a hash of what they depend on: the files' names,
sizes and times, the `[data]` settings, and the tokenizer. A folder is written under another name
and renamed when it is complete; nothing in it changes afterwards. Memory use grows with the
number of rows, not with the length of their texts.

    rows.json     number of rows, bytes of their texts, files, unusable rows
    tokens, learnt, starts       int32 and uint8 for every token; (N + 1,) int64
    digests, places, truncated   (N, 32) uint8; (N, 2) int64: file and line; (N,) uint8
    ids, id_ends                 names, each with a line end; (N,) int64
    texts, text_ends             blocks of 256 rows as JSON, zstd; (B,) int64
    bm25          index of their words, see `Lexical`; made when it is first needed
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numcodecs import Zstd

from rapidin_cli.data.examples import IGNORED, Example, Tokens
from rapidin_cli.data.rows import BadRow, Extras, Row
from rapidin_storage import canonical_json

_FORMAT = 2
_BLOCK = 256
_KEPT_BLOCKS = 64
# Folders that are kept: of several tokenizers, and of a setting that is tried.
_KEPT_FOLDERS = 4
_NEW = "new-"
_ABANDONED_SECONDS = 3600
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("<i4", ()),
    "learnt": ("u1", ()),
    "starts": ("<i8", ()),
    "digests": ("u1", (32,)),
    "places": ("<i8", (2,)),
    "truncated": ("u1", ()),
    "id_ends": ("<i8", ()),
    "text_ends": ("<i8", ()),
}
_CODEC = Zstd(level=1)

Array = np.ndarray[Any, Any]


class StoredExample(Example):
    """An example of `EncodedRows`: its tokens and its text are read when they are needed."""

    def __init__(self, rows: EncodedRows, number: int) -> None:
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_number", number)

    _rows: EncodedRows
    _number: int

    @property
    def row(self) -> Row:
        """Where it comes from."""
        return self._rows.row(self._number)

    @property
    def input_ids(self) -> Tokens:
        """(T,) int32."""
        tokens: Tokens = self._rows.part("tokens", self._number)
        return tokens

    @property
    def labels(self) -> Tokens:
        """(T,) int32."""
        learnt = self._rows.part("learnt", self._number)
        return np.where(learnt, self.input_ids, np.int32(IGNORED))

    @property
    def truncated(self) -> bool:
        """It was longer than `max_tokens`."""
        return bool(self._rows.truncated[self._number])

    @property
    def digest(self) -> bytes:
        """SHA-256 of tokens and labels."""
        return self._rows.digest(self._number)

    def __reduce__(self) -> Any:
        """Another process gets the example itself."""
        return Example, (self.row, np.array(self.input_ids), self.labels, self.truncated)


class EncodedRows(Sequence[Example]):
    """The examples of a folder, in the order of the data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self._count: int = facts["rows"]
        self.text_bytes: int = facts["text_bytes"]
        self._files: list[str] = facts["files"]
        self.bad = [BadRow(*each) for each in facts["bad"]]
        self._arrays = {name: _mapped(folder / name, *of) for name, of in _ARRAYS.items()}
        self._ids = _mapped(folder / "ids", "u1", ())
        self._texts = _mapped(folder / "texts", "u1", ())
        self.truncated = self._arrays["truncated"]
        self._block = lru_cache(_KEPT_BLOCKS)(self._read_block)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        if isinstance(number, slice):
            return [StoredExample(self, n) for n in range(*number.indices(self._count))]
        if not -self._count <= number < self._count:
            raise IndexError(number)
        return StoredExample(self, number % self._count)

    def part(self, name: str, number: int) -> Any:
        """Return the tokens, or which of them are learnt, of an example."""
        starts = self._arrays["starts"]
        return self._arrays[name][starts[number] : starts[number + 1]]

    def digest(self, number: int) -> bytes:
        """Return the digest of an example."""
        return bytes(self._arrays["digests"][number])

    def row(self, number: int) -> Row:
        """Return the row of an example."""
        block, place = divmod(number, _BLOCK)
        prompt, response, messages, fields, extras = self._block(block)[place]
        file, line = self._arrays["places"][number].tolist()
        turns = None if messages is None else tuple(messages)
        name = self._files[file]
        return Row(name, line, self._id(number), prompt, response, turns, fields, extras)

    def _id(self, number: int) -> str:
        ends = self._arrays["id_ends"]
        start = ends[number - 1] if number else 0
        return bytes(self._ids[start : ends[number] - 1]).decode("utf-8")

    def _read_block(self, block: int) -> list[Any]:
        ends = self._arrays["text_ends"]
        start = ends[block - 1] if block else 0
        found: list[Any] = json.loads(_CODEC.decode(bytes(self._texts[start : ends[block]])))
        return found

    def named(self, identity: str) -> int | None:
        """Return the number of the example with this id, FILE:LINE or start of its digest."""
        if (number := self._with_id(identity)) is not None:
            return number
        file, _, line = identity.rpartition(":")
        if file in self._files and line.isdigit():
            place = [self._files.index(file), int(line)]
            found = np.flatnonzero((self._arrays["places"] == place).all(1))
            if len(found):
                return int(found[0])
        if len(identity) >= 8:
            digests = (self.digest(number).hex() for number in range(self._count))
            return next((n for n, one in enumerate(digests) if one.startswith(identity)), None)
        return None

    def _with_id(self, identity: str) -> int | None:
        wanted = b"\n" + identity.encode("utf-8", "surrogatepass") + b"\n"
        names = b"\n" + bytes(self._ids)
        at = names.find(wanted)
        while at >= 0:
            number = int(np.searchsorted(self._arrays["id_ends"], at, side="right"))
            if self._id(number) == identity:  # and not the last line of another one
                return number
            at = names.find(wanted, at + 1)
        return None


def _mapped(path: Path, kind: str, width: tuple[int, ...]) -> Array:
    if not path.stat().st_size:  # nothing can be mapped
        return np.empty((0, *width), kind)
    whole: Array = np.memmap(path, kind, "r").view(np.ndarray)
    return whole.reshape(-1, *width)


class _Writer:
    """Writes the files of a folder, row by row."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._folder = folder
        self._numbers = {name: number for number, name in enumerate(files)}
        self._streams: dict[str, IO[bytes]] = {
            name: (folder / name).open("wb") for name in (*_ARRAYS, "ids", "texts")
        }
        self._texts: list[Any] = []
        self._tokens = self._ids = self._packed = self._raw = self._rows = 0
        self._put("starts", np.int64(0))

    def _put(self, name: str, values: Any) -> None:
        self._streams[name].write(np.asarray(values, dtype=_ARRAYS[name][0]).tobytes())

    def add(self, example: Example) -> None:
        row = example.row
        self._put("tokens", example.input_ids)
        self._put("learnt", example.labels != IGNORED)
        self._tokens += len(example.input_ids)
        self._put("starts", self._tokens)
        self._streams["digests"].write(example.digest)
        self._put("places", (self._numbers[row.file], row.line))
        self._put("truncated", example.truncated)
        name = row.id.encode("utf-8") + b"\n"
        self._streams["ids"].write(name)
        self._ids += len(name)
        self._put("id_ends", self._ids)
        texts = row.prompt, row.response, row.messages, row.fields
        self._texts.append((*texts, _kept_extras(row)))
        self._rows += 1
        if len(self._texts) == _BLOCK:
            self._end_block()

    def _end_block(self) -> None:
        text = json.dumps(self._texts).encode("ascii")
        packed = _CODEC.encode(text)
        self._streams["texts"].write(packed)
        self._raw += len(text)
        self._packed += len(packed)
        self._put("text_ends", self._packed)
        self._texts = []

    def stop(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def close(self, bad: Sequence[BadRow]) -> None:
        if self._texts:
            self._end_block()
        self.stop()
        facts = {
            "rows": self._rows,
            "text_bytes": self._raw,
            "files": list(self._numbers),
            "bad": [(each.file, each.line, each.reason, each.dropped) for each in bad],
        }
        (self._folder / "rows.json").write_text(json.dumps(facts), encoding="utf-8")


def _kept_extras(row: Row) -> dict[str, Any]:
    """What else decides a row's tokens; the tokens themselves are kept once."""
    if Extras.TOKENS not in row.extras:
        return row.extras
    return {Extras.TOKENS: True}


class TokenStore:
    """Folders of encoded rows.

    Args:
        folder: where they are kept; if it cannot be written, a temporary folder is used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str) -> EncodedRows | None:
        """Return the rows of that name, if they exist and can be read."""
        folder = self._folder / name
        try:
            rows = EncodedRows(folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(folder)  # it was used: the ones that were not are removed first
        return rows

    def write(
        self, name: str, files: Sequence[str], examples: Iterator[Example], bad: list[BadRow]
    ) -> EncodedRows:
        """Write rows and return them; `bad` is complete once `examples` has ended."""
        temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._writable()))
        writer = _Writer(temporary, files)
        try:
            for example in examples:
                writer.add(example)
            bad.sort(key=lambda each: (files.index(each.file), each.line))
            writer.close(bad)
            written = self.find(name)
            if written is not None:  # by somebody else in the meantime
                return written
            place = temporary.parent / name
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
        finally:
            writer.stop()
            shutil.rmtree(temporary, ignore_errors=True)
        self._forget(temporary.parent)
        return EncodedRows(place)

    def _writable(self) -> Path:
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            if os.access(self._folder, os.W_OK):
                return self._folder
        temporary = Path(tempfile.mkdtemp(prefix="rin-data-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return temporary

    def _forget(self, folder: Path) -> None:
        """Remove the least recently used folders, and what a killed writer left."""
        with suppress(OSError):
            found = sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime_ns)
            kept = [each for each in found if not each.name.startswith(_NEW)]
            unused = kept[:-_KEPT_FOLDERS]
            unused += [each for each in found if each.name.startswith(_NEW) and _stands(each)]
            for old in unused:
                shutil.rmtree(old, ignore_errors=True)


def _stands(folder: Path) -> bool:
    """Whether nobody has written to a new folder for an hour."""
    return time.time() - (folder / "tokens").stat().st_mtime > _ABANDONED_SECONDS


def name_of(parts: Mapping[str, Any]) -> str:
    """Return the name of the folder for what rows depend on."""
    return hashlib.sha256(canonical_json({"format": _FORMAT, **parts})).hexdigest()[:32]
