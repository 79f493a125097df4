"""What the model of the store draws from, and how it damages files."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from rapidin_storage import CacheWriter
from rapidin_storage.contents import parts
from tests.support.stored import rows

PLACES = ("a", "b", "remote")

ROUTES = (("a", "remote"), ("b", "remote"), ("remote", "a"), ("remote", "b"))

CHUNK_ROWS = 4

PAGE_CHUNKS = 3

UNIVERSE = 40

# Nothing else moves a clock here, so "older than an hour from now" is everything.
EVERYTHING = -3600.0

EVERY = rows(0, UNIVERSE)

Rows = dict[bytes, float]

places = st.sampled_from(PLACES)

slots = st.integers(0, 1)

damages = st.sampled_from(("flip", "cut", "remove"))


def ranges(step, most):
    """Numbers of rows, overlapping often."""
    starts, lengths = st.integers(0, UNIVERSE // step - 1), st.integers(1, most // step)
    return st.builds(
        lambda start, length: range(start * step, min((start + length) * step, UNIVERSE)),
        starts,
        lengths,
    )


# Whole chunks are the ones that come again bit by bit.
numbers = ranges(1, 11) | ranges(CHUNK_ROWS, 12)


@dataclass
class Writer:
    """A writer and what it should know."""

    product: CacheWriter
    who: float
    seen: set[bytes]
    held: Rows = field(default_factory=dict)


def damage(root, path, how):
    if how == "remove":
        root.remove(path)
        return
    data = root.read(path)
    root.write(path, data[:-1] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])


def names(cache, commit, ref):
    found = parts(cache.objects, commit, broken=lambda *_: None)
    return any(part.ref == ref for part in found)


def rows_of(snapshot, ref):
    """Digests of the rows that cannot be read without an object, in order."""
    doomed = []
    for index, (start, stop) in enumerate(snapshot.chunk_ranges()):
        page = snapshot.commit.pages[index // PAGE_CHUNKS]
        if ref == page or ref in snapshot.manifest.chunk(index).values():
            doomed += [d for d in map(bytes, snapshot.digests[start:stop]) if any(d)]
    return doomed
