"""Inner products of stored sketches with query directions: the scan's inner loop.

On a CPU bytes and bits are multiplied with a few directions by compiled loops (`few_directions`).
Otherwise stored numbers become floats one tile at a time: a tile of floats fits a core's cache, and
a chunk of rows is never copied as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from rapidin_cli.gradients.layout import RowLayout, Stored
from rapidin_cli.gradients.rows.few_directions import BitsWithFew, BytesWithFew, kernels

# Up to so many directions loops are faster than tiles (tests/benchmarks/scan.py).
FEW = {"int8": 6, "sign": 16, "float16": 0}

WORTH_LOADING = 2**27
"""Bytes of rows from which loops are worth the half second that loading them takes."""

# Numbers of a tile: 128 rows of 2,048 columns measured best on a CPU (1 MB); a GPU wants few
# launches of large ones.
_COLUMNS = 2048
_NUMBERS = {"cpu": 2**18, "cuda": 2**26}
# The signs of each byte's bits, highest first, and eight floats as one item of an array.
_EIGHT = np.dtype("V32")
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_SIGNS = np.where(_BITS, np.float32(1), np.float32(-1)).view(_EIGHT).ravel()


@dataclass(frozen=True)
class _Tile:
    """Columns of a row: whole layers of the same size, or a part of one."""

    start: int
    stop: int
    layers: slice


def _tiles(blocks: Sequence[int], most: int) -> Iterator[_Tile]:
    layer, start = 0, 0
    for size, group in groupby(blocks):
        left = len(list(group))
        while left:
            count = min(left, max(1, most // size))
            layers = slice(layer, layer + count)
            # A layer that is too large alone comes in pieces.
            stop = start + count * size
            for first in range(start, stop, most):
                yield _Tile(first, min(first + most, stop), layers)
            start, layer, left = stop, layer + count, left - count


class SketchProducts:
    """For sketch rows.

    Args:
        layout: of the rows.
        directions: (Q, K) float32, divided by what rows have been multiplied by.
        device: where products are taken.
        stored_bytes: of all rows of the cache; None if they are many.
    """

    def __init__(
        self,
        layout: RowLayout,
        directions: torch.Tensor,
        device: torch.device,
        stored_bytes: int | None = None,
    ) -> None:
        self._device = device
        self._signs = layout.spec.precision == "sign"
        self._layered = layout.per_layer
        few = device.type == "cpu" and len(directions) <= FEW[layout.spec.precision]
        # By the rows alone: whatever else a process has loaded, its scores are the same to the bit.
        worth = stored_bytes is None or stored_bytes >= WORTH_LOADING
        loops = kernels() if few and worth else None
        self._inner: _FloatTiles | BytesWithFew | BitsWithFew
        if loops is None:
            self._inner = _FloatTiles(layout, directions.to(device))
        elif self._signs:
            self._inner = BitsWithFew(layout, directions, loops)
        else:
            self._inner = BytesWithFew(layout, directions, loops)

    def __call__(self, stored: Stored, weights: torch.Tensor | None) -> torch.Tensor:
        """See `Products`."""
        sketch = torch.as_tensor(stored["sketch"], device=self._device)
        weights = None if weights is None else weights.to(self._device)
        if self._signs and self._layered:
            # A zero gradient has no signs: what was packed for it must not count.
            norm = torch.as_tensor(stored["norm"], device=self._device)
            if norm.numel() and not norm.amin() > 0:
                present = norm > 0
                weights = present.float() if weights is None else weights * present
        scale = torch.as_tensor(stored["scale"], device=self._device)
        return (self._inner.products(sketch, weights) * scale[:, None]).cpu()


class _FloatTiles:
    """Products of sketches that become floats tile by tile."""

    def __init__(self, layout: RowLayout, directions: torch.Tensor) -> None:
        self._directions = directions
        self._numbers = _NUMBERS[directions.device.type]
        most = _COLUMNS if directions.device.type == "cpu" else self._numbers
        self._tiles = list(_tiles(layout.blocks, most))
        self._signs = layout.spec.precision == "sign"

    def products(self, sketch: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the products (n, Q) of stored sketches (n, .)."""
        total = torch.zeros(len(sketch), len(self._directions), device=sketch.device)
        width = max(tile.stop - tile.start for tile in self._tiles)
        step = max(1, self._numbers // width)
        # Signs come by whole bytes, of which one more may be needed.
        room = torch.empty(step * (width + 16), device=total.device)
        for first in range(0, len(sketch), step):
            part = slice(first, first + step)
            into = total[part]
            for tile in self._tiles:
                values = (self._of_signs if self._signs else _as_floats)(sketch[part], tile, room)
                if weights is not None:
                    of_tile = weights[part, tile.layers, None]
                    values.view(len(into), of_tile.shape[1], -1).mul_(of_tile)
                _add_product(into, values, self._directions[:, tile.start : tile.stop])
        return total

    def _of_signs(self, sketch: torch.Tensor, tile: _Tile, room: torch.Tensor) -> torch.Tensor:
        """The signs of a tile as floats, +1 and -1."""
        first = tile.start // 8
        packed = sketch[:, first : -(-tile.stop // 8)]
        values = room[: 8 * packed.numel()].view(len(packed), -1)
        if packed.device.type == "cpu":
            # Eight floats for each byte, in one step that leaves the interpreter to others.
            eights = values.numpy().view(_EIGHT)
            np.take(_SIGNS, packed.numpy(), out=eights, mode="clip")
        else:
            places = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
            bits = (packed[:, :, None] >> places) & 1
            torch.sub(bits.flatten(1) * 2.0, 1, out=values)
        return values[:, tile.start - 8 * first : tile.stop - 8 * first]


def _as_floats(sketch: torch.Tensor, tile: _Tile, room: torch.Tensor) -> torch.Tensor:
    columns = tile.stop - tile.start
    values = room[: len(sketch) * columns].view(len(sketch), columns)
    return values.copy_(sketch[:, tile.start : tile.stop])


def _add_product(into: torch.Tensor, values: torch.Tensor, directions: torch.Tensor) -> None:
    """Add values @ directions^T, (n, m) @ (m, Q), to (n, Q)."""
    if len(directions) == 1:
        into[:, 0].addmv_(values, directions[0])
    else:
        torch.addmm(into, values, directions.T, out=into)
