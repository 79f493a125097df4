"""Examples: rows as tokens and labels, their digests, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from rapidin_cli.data.rows import BadRow, Row

IGNORED = -100
"""The label of a token that is not learnt from: the prompt, padding."""

_WINDOW_ROWS = 16_384

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    Attributes:
        row: where it comes from.
        input_ids: (T,) int32.
        labels: (T,) int32, not shifted; IGNORED where nothing is learnt.
        truncated: it was longer than `max_tokens`.
    """

    row: Row
    input_ids: Tokens
    labels: Tokens
    truncated: bool = False

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of tokens and labels: equal examples have equal gradients."""
        return hashlib.sha256(
            b"rin example 1\0"
            + len(self.input_ids).to_bytes(8, "little")
            + self.input_ids.astype("<i4").tobytes()
            + self.labels.astype("<i4").tobytes()
        ).digest()

    @property
    def learnt_mask(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which tokens have a loss, (T,); the first of a sequence never has."""
        mask: np.ndarray[tuple[int], np.dtype[np.bool_]] = self.labels != IGNORED
        mask[0] = False
        return mask

    def with_tokens(self, input_ids: Tokens, labels: Tokens) -> Example:
        """Return the same row with other tokens."""
        return Example(self.row, input_ids, labels, self.truncated)

    @property
    def learnt(self) -> int:
        """Number of tokens that have a loss."""
        return int(self.learnt_mask.sum())


class Groups(Mapping[bytes, list[Example]]):
    """Digest -> the examples that have it, in the order of the data."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._numbers: dict[bytes, int] = {}
        self._first: list[int] = []
        self._others: dict[int, list[int]] = {}
        for place, example in enumerate(examples):
            number = self._numbers.setdefault(example.digest, len(self._first))
            if number == len(self._first):
                self._first.append(place)
            else:
                self._others.setdefault(number, []).append(place)

    def __len__(self) -> int:
        return len(self._first)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._numbers)

    def __contains__(self, digest: object) -> bool:
        return digest in self._numbers

    def __getitem__(self, digest: bytes) -> list[Example]:
        return self.at(self._numbers[digest])

    def at(self, number: int) -> list[Example]:
        """Return the examples of the n-th digest."""
        places = [self._first[number], *self._others.get(number, ())]
        return [self._examples[place] for place in places]


class Distinct(Sequence[list[Example]]):
    """The same as a sequence."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, number: int) -> list[Example]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[Example]]: ...
    def __getitem__(self, number: int | slice) -> list[Example] | list[list[Example]]:
        if isinstance(number, slice):
            return [self._groups.at(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._groups.at(number % len(self))


@dataclass
class Dataset:
    """All usable examples of a project.

    Attributes:
        bad: rows that are not among them, in the order of the files.
    """

    examples: Sequence[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    @property
    def unusable(self) -> list[BadRow]:
        """Rows that are broken, or that rin cannot follow."""
        return [row for row in self.bad if not row.dropped]

    @property
    def dropped(self) -> list[BadRow]:
        """Rows that training left out as well."""
        return [row for row in self.bad if row.dropped]

    @cached_property
    def by_digest(self) -> Groups:
        """Digest -> the examples that have it, in file order."""
        return Groups(self.examples)

    @property
    def distinct(self) -> Distinct:
        """The examples of each digest, in the order of `by_digest`."""
        return Distinct(self.by_digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the set of example digests: order and repeats do not count."""
        total = hashlib.sha256()
        for digest in sorted(self.by_digest):
            total.update(digest)
        return total.hexdigest()

    @property
    def truncated(self) -> int:
        """How many examples were cut at `max_tokens`."""
        return sum(example.truncated for example in self.examples)

    def find(self, identity: str) -> Example | None:
        """Return the example with that row id or FILE:LINE, or whose digest begins so."""
        number = self._number(identity)
        return None if number is None else self.examples[number]

    def _number(self, identity: str) -> int | None:
        named = getattr(self.examples, "named", None)
        if named is not None:
            number: int | None = named(identity)
            return number
        for number, example in enumerate(self.examples):
            place = f"{example.row.file}:{example.row.line}"
            if identity in (example.row.id, place):
                return number
        if len(identity) >= 8:
            for number, example in enumerate(self.examples):
                if example.digest.hex().startswith(identity):
                    return number
        return None


def plan_batches(
    examples: Sequence[Example], done: Iterable[bytes], token_budget: int
) -> list[list[Example]]:
    """Group the examples whose digest is not in `done` into batches of similar length.

    Within windows of the data file, longest first, each batch at most `token_budget`
    padded tokens (but always one example). The order depends only on the data, and caching
    commits batches in this order: after an interruption the same batches come again, so
    their rows are bit-identical to those of an undisturbed run.
    """
    seen = set(done)
    batches = []
    for start in range(0, len(examples), _WINDOW_ROWS):
        window = []
        for example in examples[start : start + _WINDOW_ROWS]:
            if example.digest not in seen:
                seen.add(example.digest)
                window.append(example)
        window.sort(key=lambda example: (-len(example.input_ids), example.digest))
        while window:
            size = max(1, token_budget // len(window[0].input_ids))
            batches.append(window[:size])
            window = window[size:]
    return batches


def padded(examples: Sequence[Example]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pad on the right: input_ids (B, T) with zeros, labels (B, T) with IGNORED, int64."""
    length = max(len(example.input_ids) for example in examples)
    ids = np.zeros((len(examples), length), dtype=np.int64)
    labels = np.full((len(examples), length), IGNORED, dtype=np.int64)
    for number, example in enumerate(examples):
        ids[number, : len(example.input_ids)] = example.input_ids
        labels[number, : len(example.labels)] = example.labels
    return ids, labels
