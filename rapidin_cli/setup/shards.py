"""Files that are parts of one set, by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from glob import escape

_MOST = 100_000
# train-00000-of-00002.parquet; the hub puts a hash behind it.
_COUNTED = re.compile(r"(.*?)(\d+)([-_]of[-_])(\d+)(-[0-9a-f]{6,})?(\D.*)?")
# part-00000-ID.snappy.parquet, 0000.parquet; not years, dates, sizes or versions.
_NUMBERED = re.compile(r"(|.*?[-_.])(\d{4,6})(\D.*)")


@dataclass(frozen=True)
class Shards:
    """A file, or all parts of a set.

    Attributes:
        names: of the files, in order.
        missing: numbers of the parts that are not there.
        pattern: what matches all of them; the name of a single file.
    """

    names: tuple[str, ...]
    pattern: str
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Set:
    pattern: str
    digits: int
    count: int


def shards_among(names: Iterable[str]) -> list[Shards]:
    """Put the parts of each set together; any other file is a set of its own."""
    alone: list[str] = []
    sets: dict[_Set, list[tuple[int, str]]] = {}
    for name in names:
        place = _place(name)
        if place is None:
            alone.append(name)
        else:
            sets.setdefault(place[0], []).append((place[1], name))
    found = []
    for kind, parts in sets.items():
        numbers = {number for number, _ in parts}
        begin = int(kind.count in numbers if kind.count else min(numbers))
        end = begin + kind.count if kind.count else max(numbers) + 1
        guessed = not kind.count and (len(parts) < 2 or begin > 1 or 2 * len(parts) < end - begin)
        # Two files with one number are two of something else, such as versions.
        if guessed or len(numbers) < len(parts):
            alone += [name for _, name in parts]
            continue
        missing = tuple(sorted(set(range(begin, end)) - numbers))
        found.append(Shards(tuple(name for _, name in sorted(parts)), kind.pattern, missing))
    return found + [Shards((name,), name) for name in alone]


def _place(name: str) -> tuple[_Set, int] | None:
    """Return which set a name belongs to, and its number there."""
    if match := _COUNTED.fullmatch(name):
        stem, number, of, count, hashed, rest = match.groups("")
        if 0 < int(count) <= _MOST:
            pattern = f"{escape(stem)}*{of}{count}{'*' if hashed else ''}{escape(rest)}"
            return _Set(pattern, 0, int(count)), int(number)
    if match := _NUMBERED.fullmatch(name):
        stem, number, rest = match.groups()
        return _Set(f"{escape(stem)}*{escape(rest)}", len(number), 0), int(number)
    return None
