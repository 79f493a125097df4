"""Inner products of stored rows with query directions: the scan's inner loop.

Stored numbers stay as they are until the tile of them that is being multiplied: a tile of
floats fits a core's cache, and a chunk of rows is never copied as floats. On a CPU the rows
of a chunk are divided among threads that each run their own tiles, since a tile is too small
for torch's own division of its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from rapidin_cli.gradients.rows import RowLayout

Array = np.ndarray[Any, Any]
Stored = Mapping[str, Array | torch.Tensor]
"""Arrays of n stored rows, on any device."""

# Numbers of a tile: 128 rows of 2,048 columns measured best on a CPU (1 MB); a GPU wants few
# launches of large ones.
_COLUMNS = 2048
_NUMBERS = {"cpu": 2**18, "cuda": 2**26}
# The signs of each byte's bits, highest first, and eight floats as one item of an array.
_EIGHT = np.dtype("V32")
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_SIGNS = np.where(_BITS, np.float32(1), np.float32(-1)).view(_EIGHT).ravel()


class Products(Protocol):
    """Multiplies stored rows with some directions."""

    def __call__(self, stored: Stored, weights: torch.Tensor | None) -> torch.Tensor:
        """Return sum over layers of weights[n, l] <row_nl, direction_ql>, (n, Q) float32.

        Args:
            stored: arrays of n rows.
            weights: (n, L) float32, or None for all ones.
        """


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let each operator of torch run in one thread; yield how many threads may run at once.

    For the whole process: MKL knows only one number, and threads that spin between two small
    operators take the cores from those that work.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield count
    finally:
        torch.set_num_threads(count)


class _Threads:
    """Divides rows among threads, in which torch's operators use one each; not for a GPU."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._count = count if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def each(self, work: Callable[[slice], None], rows: int) -> None:
        """Call `work` for consecutive shares of so many rows."""
        count = min(self._count, rows)
        if count <= 1:
            work(slice(0, rows))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                count, "rin-scan", initializer=lambda: torch.set_num_threads(1)
            )
        ends = [rows * n // count for n in range(count + 1)]
        list(self._pool.map(work, map(slice, ends[:-1], ends[1:])))


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
        threads: how many share the work on a CPU, see `one_thread_each`.
    """

    def __init__(
        self, layout: RowLayout, directions: torch.Tensor, device: torch.device, threads: int
    ) -> None:
        self._directions = directions.to(device)
        self._device = device
        self._numbers = _NUMBERS[device.type]
        most = _COLUMNS if device.type == "cpu" else self._numbers
        self._tiles = list(_tiles(layout.blocks, most))
        self._signs = layout.spec.precision == "sign"
        self._layered = layout.per_layer
        self._threads = _Threads(threads, device)

    def __call__(self, stored: Stored, weights: torch.Tensor | None) -> torch.Tensor:
        """See `Products`."""
        sketch = torch.as_tensor(stored["sketch"], device=self._device)
        weights = None if weights is None else weights.to(self._device)
        if self._signs and self._layered:
            # A zero gradient has no signs: what was packed for it must not count.
            present = torch.as_tensor(stored["norm"], device=self._device) > 0
            if not present.all():
                weights = present.float() if weights is None else weights * present
        count = len(sketch)
        total = torch.zeros(count, len(self._directions), device=self._device)
        self._threads.each(lambda rows: self._add(total, sketch, weights, rows), count)
        scale = torch.as_tensor(stored["scale"], device=self._device)
        return (total * scale[:, None]).cpu()

    def _add(
        self, total: torch.Tensor, sketch: torch.Tensor, weights: torch.Tensor | None, rows: slice
    ) -> None:
        width = max(tile.stop - tile.start for tile in self._tiles)
        step = max(1, self._numbers // width)
        # Signs come by whole bytes, of which one more may be needed.
        room = torch.empty(step * (width + 16), device=self._device)
        for first in range(rows.start, rows.stop, step):
            part = slice(first, min(first + step, rows.stop))
            into = total[part]
            for tile in self._tiles:
                values = (self._of_signs if self._signs else _as_floats)(sketch[part], tile, room)
                if weights is not None:
                    of_tile = weights[part, tile.layers, None]
                    values.view(len(into), of_tile.shape[1], -1).mul_(of_tile)
                _add_product(into, values, self._directions[:, tile.start : tile.stop])

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


class FactorProducts:
    """For factor rows.

    Args:
        layout: of the rows.
        directions: (Q, W) float32, for each layer factors of some rank r, (r, O) and (r, I).
        device: where products are taken.
        threads: how many share the work on a CPU, see `one_thread_each`.
    """

    def __init__(
        self, layout: RowLayout, directions: torch.Tensor, device: torch.device, threads: int
    ) -> None:
        self._device = device
        self._rank = layout.spec.rank
        self._queries = len(directions)
        self._numbers = _NUMBERS[device.type]
        self._packed = layout.spec.precision == "int4"
        sides = layout.sides
        # Unpacked nibbles come sixteen times too large, u and v alike.
        scale = 1 / 16 if self._packed else 1.0
        rank = directions.shape[1] // sum(map(sum, sides))
        self._layers: list[tuple[slice, torch.Tensor, slice, torch.Tensor]] = []
        at, place = 0, 0
        for out, inner in sides:
            parts = []
            for side in (out, inner):
                values = directions[:, place : place + rank * side].reshape(-1, side)
                columns = (values * scale).T.contiguous().to(device)
                parts += [slice(at, at + self._rank * side), columns]
                at += self._rank * side
                place += rank * side
            self._layers.append(tuple(parts))  # type: ignore[arg-type]
        self._widest = max(out + inner for out, inner in sides) * self._rank
        self._threads = _Threads(threads, device)

    def __call__(self, stored: Stored, weights: torch.Tensor | None) -> torch.Tensor:
        """See `Products`."""
        factors = torch.as_tensor(stored["factors"], device=self._device)
        count = len(factors)
        scale = torch.as_tensor(stored["scale"], device=self._device).view(count, -1, self._rank)
        if weights is not None:
            scale = scale * weights.to(self._device)[:, :, None]
        total = torch.zeros(count, self._queries, device=self._device)
        self._threads.each(lambda rows: self._add(total, factors, scale, rows), count)
        return total.cpu()

    def _add(
        self, total: torch.Tensor, factors: torch.Tensor, scale: torch.Tensor, rows: slice
    ) -> None:
        step = max(1, self._numbers // self._widest)
        for first in range(rows.start, rows.stop, step):
            part = slice(first, min(first + step, rows.stop))
            count = len(total[part])
            for number, (where, left, there, right) in enumerate(self._layers):
                u = self._values(factors[part], where).view(count * self._rank, -1)
                v = self._values(factors[part], there).view(count * self._rank, -1)
                products = (u @ left).mul_(v @ right)
                sums = products.view(count, self._rank, self._queries, -1).sum(3)
                total[part] += (sums * scale[part, number, :, None]).sum(1)

    def _values(self, factors: torch.Tensor, where: slice) -> torch.Tensor:
        """Some columns as floats; those of nibbles times 16."""
        if not self._packed:
            return factors[:, where].float()
        first = where.start // 2
        packed = factors[:, first : -(-where.stop // 2)]
        values = torch.empty(len(packed), packed.shape[1], 2, device=packed.device)
        # As bytes with a sign: the low half moved up, and the high half alone.
        values[:, :, 0] = (packed * 16).view(torch.int8)
        values[:, :, 1] = (packed & 0xF0).view(torch.int8)
        inside = slice(where.start - 2 * first, where.stop - 2 * first)
        return values.flatten(1)[:, inside].contiguous()
