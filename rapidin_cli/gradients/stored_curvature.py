"""A checkpoint's EK-FAC curvature as the store keeps it.

It has a cache of its own, so that push, pull, verify and gc treat it as they treat rows. All
matrices of a collection make one float32 vector, which is cut into pieces; each piece is a row.
Rows of two collections never mix: a piece is named by the content of the whole collection.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapidin_cli.errors import MissingError
from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.curvature import LayerCurvature
from rapidin_storage import ArraySpec, Cache, CacheWriter, CorruptError, Snapshot

Array = np.ndarray[Any, Any]

_PIECE = 65_536
_PIECES_A_CHUNK = 64
# A writer holds what is not committed: 128 MB.
_CHUNKS_A_COMMIT = 8
_ARRAYS = {
    "values": ArraySpec("float32", (_PIECE,)),
    "collection": ArraySpec("uint8", (32,)),
    "place": ArraySpec("int64"),
    "data": ArraySpec("uint8", (32,)),
    "examples": ArraySpec("int64"),
}


@dataclass(frozen=True)
class CollectedCurvature:
    """A collected curvature.

    Attributes:
        layers: in the order of the targets.
        data: digest of the examples that it was collected on; examples: how many.
    """

    layers: Sequence[LayerCurvature]
    data: str
    examples: int


def store(cache: Cache, found: CollectedCurvature, identity: dict[str, Any]) -> Snapshot:
    """Write a collection into its cache, in several commits: it is there once it is whole."""
    name = hashlib.sha256()
    for values in _blocks(found.layers):
        name.update(values.tobytes())
    name.update(found.data.encode())
    shapes = [[list(part.shape) for part in _parts(layer)] for layer in found.layers]
    writer = CacheWriter(
        cache, _ARRAYS, {"rin": {"identity": identity, "shapes": shapes}}, _PIECES_A_CHUNK
    )
    place = 0
    for number, values in enumerate(_blocks(found.layers), 1):
        places = range(place, place + len(values))
        writer.add(_rows(name.digest(), places, values, found))
        place = places.stop
        if number % _CHUNKS_A_COMMIT == 0:
            writer.commit()
    snapshot = writer.commit()
    assert snapshot is not None
    return snapshot


def _rows(name: bytes, places: range, values: Array, found: CollectedCurvature) -> dict[str, Array]:
    """The rows of some pieces of a collection."""
    digests = [hashlib.sha256(name + at.to_bytes(8, "little")).digest() for at in places]
    return {
        "values": values,
        "collection": _repeat(name, len(places)),
        "place": np.array(places, dtype=np.int64),
        "data": _repeat(bytes.fromhex(found.data), len(places)),
        "examples": np.full(len(places), found.examples, dtype=np.int64),
        "digest": np.frombuffer(b"".join(digests), np.uint8).reshape(len(places), 32),
    }


def _blocks(layers: Sequence[LayerCurvature]) -> Iterator[Array]:
    """Yield all numbers as pieces, (n, 65536), a chunk of them at a time, zeros at the end."""
    size = _PIECE * _PIECES_A_CHUNK
    block, filled = np.zeros(size, np.float32), 0
    for part in (part for layer in layers for part in _parts(layer)):
        rest = part.cpu().numpy().ravel()
        while len(rest):
            count = min(len(rest), size - filled)
            block[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
            if filled == size:
                yield block.reshape(-1, _PIECE)
                block, filled = np.zeros(size, np.float32), 0
    if filled:
        yield block[: -(-filled // _PIECE) * _PIECE].reshape(-1, _PIECE)


class StoredLayers(Sequence[LayerCurvature]):
    """The layers of a stored collection, each read when it is asked for.

    All of them may be more than a model: in order, a chunk of pieces is read once.

    Args:
        shapes: of each layer's parts.
        slots: of the pieces, in order.
    """

    def __init__(self, snapshot: Snapshot, shapes: Sequence[Any], slots: Array) -> None:
        self._snapshot = snapshot
        self._shapes = shapes
        self._slots = slots
        self._ranges = list(snapshot.chunk_ranges())
        sizes = [sum(int(np.prod(shape)) for shape in layer) for layer in shapes]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._chunk: tuple[tuple[int, int], Array] | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return 4 * int(self._starts[-1])

    def __getitem__(self, number: Any) -> Any:
        """Return a layer's curvature.

        Raises:
            CorruptError: it was written wrongly.
        """
        number = range(len(self))[number]
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        first, last = start // _PIECE, -(-stop // _PIECE)
        pieces = np.concatenate([self._piece(place) for place in range(first, last)])
        values = torch.from_numpy(pieces[start - first * _PIECE :][: stop - start])
        if not torch.isfinite(values).all():
            raise CorruptError(f"{self._snapshot} contains numbers that are not finite")
        made = []
        for shape in self._shapes[number]:
            size = int(np.prod(shape))
            made.append(values[:size].view(*shape))
            values = values[size:]
        return LayerCurvature(*made)

    def _piece(self, place: int) -> Array:
        slot = int(self._slots[place])
        if self._chunk is None or not self._chunk[0][0] <= slot < self._chunk[0][1]:
            where = next(pair for pair in self._ranges if pair[0] <= slot < pair[1])
            self._chunk = where, self._snapshot.read(*where, ["values"])["values"]
        piece: Array = self._chunk[1][slot - self._chunk[0][0]]
        return piece


def is_whole(snapshot: Snapshot) -> bool:
    """Whether all of a collection can be there, not the first commits alone."""
    shapes = snapshot.attributes.get("rin", {}).get("shapes", [])
    return snapshot.commit.rows >= _pieces(shapes)


def _pieces(shapes: Sequence[Any]) -> int:
    length = sum(int(np.prod(shape)) for layer in shapes for shape in layer)
    return -(-length // _PIECE)


def load(snapshot: Snapshot, targets: Sequence[Target]) -> CollectedCurvature:
    """Find the newest complete collection of a cache; its layers are read when asked for.

    Raises:
        MissingError: there is none, or it was collected for other layers.
    """
    shapes = snapshot.attributes.get("rin", {}).get("shapes")
    ours = [[t.layer.out_features, t.layer.in_features] for t in targets]
    if shapes is None or [layer[2] for layer in shapes] != ours:
        raise MissingError(f"{snapshot} has curvature of other layers", hint="rin curvature")
    pieces = _pieces(shapes)
    about = snapshot.read(0, snapshot.commit.slots, ["collection", "place", "data", "examples"])
    order: dict[bytes, list[int]] = {}
    for slot in sorted(snapshot.index.values()):
        order.setdefault(bytes(about["collection"][slot]), []).append(slot)
    whole = [slots for slots in order.values() if len(slots) == pieces]
    if not whole:
        raise MissingError(f"{snapshot} has no complete curvature", hint="rin curvature --again")
    slots = np.array(max(whole, key=max))
    ordered = slots[np.argsort(about["place"][slots], kind="stable")]
    first = int(slots[0])
    return CollectedCurvature(
        StoredLayers(snapshot, shapes, ordered),
        bytes(about["data"][first]).hex(),
        int(about["examples"][first]),
    )


def _parts(layer: LayerCurvature) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return layer.inputs, layer.outputs, layer.values


def _repeat(name: bytes, count: int) -> Array:
    return np.tile(np.frombuffer(name, np.uint8), (count, 1))
