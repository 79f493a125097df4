"""A checkpoint's EK-FAC curvature as the store keeps it.

It has a cache of its own, so that push, pull, verify and gc treat it as they treat rows. All
matrices of a collection make one float32 vector, which is cut into pieces; each piece is a row.
Rows of two collections never mix: a piece is named by the content of the whole collection.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapidin_cli.errors import MissingError
from rapidin_cli.gradients.capture import Target
from rapidin_cli.gradients.curvature import LayerCurvature
from rapidin_storage import ArraySpec, Cache, CacheWriter, CorruptError, Snapshot

_PIECE = 65_536
_PIECES_A_CHUNK = 64
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

    layers: list[LayerCurvature]
    data: str
    examples: int


def store(cache: Cache, found: CollectedCurvature, identity: dict[str, Any]) -> Snapshot:
    """Write a collection into its cache."""
    vector = torch.cat([part.flatten() for layer in found.layers for part in _parts(layer)])
    vector = torch.nn.functional.pad(vector.cpu(), (0, -len(vector) % _PIECE))
    values = vector.view(-1, _PIECE).numpy()
    name = hashlib.sha256(values.tobytes() + found.data.encode()).digest()
    count = len(values)
    shapes = [[list(part.shape) for part in _parts(layer)] for layer in found.layers]
    writer = CacheWriter(
        cache, _ARRAYS, {"rin": {"identity": identity, "shapes": shapes}}, _PIECES_A_CHUNK
    )
    digests = [
        hashlib.sha256(name + place.to_bytes(8, "little")).digest() for place in range(count)
    ]
    writer.add(
        {
            "values": values,
            "collection": _repeat(name, count),
            "place": np.arange(count, dtype=np.int64),
            "data": _repeat(bytes.fromhex(found.data), count),
            "examples": np.full(count, found.examples, dtype=np.int64),
            "digest": np.frombuffer(b"".join(digests), np.uint8).reshape(count, 32),
        }
    )
    snapshot = writer.commit()
    assert snapshot is not None
    return snapshot


def load(snapshot: Snapshot, targets: Sequence[Target]) -> CollectedCurvature:
    """Read the newest complete collection of a cache.

    Raises:
        MissingError: there is none, or it was collected for other layers.
        CorruptError: the cache was written wrongly.
    """
    shapes = snapshot.attributes.get("rin", {}).get("shapes")
    ours = [[t.layer.out_features, t.layer.in_features] for t in targets]
    if shapes is None or [layer[2] for layer in shapes] != ours:
        raise MissingError(f"{snapshot} has curvature of other layers", hint="rin curvature")
    length = sum(int(np.prod(shape)) for layer in shapes for shape in layer)
    pieces = -(-length // _PIECE)
    about = snapshot.read(0, snapshot.commit.slots, ["collection", "place", "data", "examples"])
    order: dict[bytes, list[int]] = {}
    for slot in sorted(snapshot.index.values()):
        order.setdefault(bytes(about["collection"][slot]), []).append(slot)
    whole = [slots for slots in order.values() if len(slots) == pieces]
    if not whole:
        raise MissingError(f"{snapshot} has no complete curvature", hint="rin curvature --again")
    slots = np.array(max(whole, key=max))
    values = np.empty((pieces, _PIECE), np.float32)
    for start, stop in snapshot.chunk_ranges():
        here = slots[(start <= slots) & (slots < stop)]
        if len(here):
            chunk = snapshot.read(start, stop, ["values"])["values"]
            values[about["place"][here]] = chunk[here - start]
    rest = torch.from_numpy(values.ravel()[:length])
    if not torch.isfinite(rest).all():
        raise CorruptError(f"{snapshot} contains numbers that are not finite")
    layers = []
    for layer in shapes:
        made = []
        for shape in layer:
            size = int(np.prod(shape))
            made.append(rest[:size].view(*shape))
            rest = rest[size:]
        layers.append(LayerCurvature(*made))
    first = int(slots[0])
    return CollectedCurvature(
        layers, bytes(about["data"][first]).hex(), int(about["examples"][first])
    )


def _parts(layer: LayerCurvature) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return layer.inputs, layer.outputs, layer.values


def _repeat(name: bytes, count: int) -> np.ndarray[Any, Any]:
    return np.tile(np.frombuffer(name, np.uint8), (count, 1))
