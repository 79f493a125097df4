"""Products of factor rows with directions: the scan's inner loop for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapidin_cli.gradients.layout import RowLayout

# Floats of a step: on a CPU they fit a core's cache, a GPU wants few launches of large ones.
_NUMBERS = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class _Run:
    """Layers of one shape whose stored numbers lie at equal distances: multiplied at once.

    A model's blocks repeat, so it has as many runs as a block has target layers.

    Attributes:
        layers: their numbers.
        starts: for u and v, where those of the first layer begin among a row's numbers.
        period: numbers from one layer to the next.
        directions: for u and v, (G, m, Q * r) float32; where nibbles are unpacked side by side,
            one for those at even places and one for those at odd ones, (G, m / 2, Q * r).
    """

    layers: range
    starts: tuple[int, int]
    period: int
    directions: tuple[list[torch.Tensor], list[torch.Tensor]]

    def parts(self, most: int) -> Iterator[_Run]:
        """Yield runs of this many layers."""
        for first in range(0, len(self.layers), most):
            u, v = (start + first * self.period for start in self.starts)
            some = slice(first, first + most)
            left, right = ([part[some] for part in parts] for parts in self.directions)
            yield _Run(self.layers[some], (u, v), self.period, (left, right))


class FactorProducts:
    """For factor rows.

    Args:
        layout: of the rows.
        directions: (Q, W) float32, for each layer factors of some rank r, (r, O) and (r, I).
        device: where products are taken.
    """

    def __init__(self, layout: RowLayout, directions: torch.Tensor, device: torch.device) -> None:
        self._device = device
        self._rank = layout.spec.rank
        self._queries = len(directions)
        sides = layout.sides
        packed = layout.spec.precision == "int4"
        # Where every u and v fills whole bytes, low nibbles, at even places, and high ones are
        # multiplied on their own: putting them back into a row costs more than that.
        self._halves = packed and all(side % 2 == 0 for pair in sides for side in pair)
        self._packed = packed
        self._runs = list(self._find(sides, directions))
        self._local = threading.local()

    def _find(self, sides: list[tuple[int, int]], directions: torch.Tensor) -> Iterator[_Run]:
        rank = directions.shape[1] // sum(map(sum, sides))
        starts = np.cumsum([0, *(sum(pair) for pair in sides)]).tolist()
        for layers in _progressions(sides, starts):
            out, inner = sides[layers[0]]
            both = []
            for length, offset in ((out, 0), (inner, out)):
                firsts = [rank * (starts[layer] + offset) for layer in layers]
                part = torch.stack([directions[:, at : at + rank * length] for at in firsts])
                # (G, Q, r * m) -> (G, m, Q * r)
                columns = part.view(len(layers), -1, length).transpose(1, 2)
                if self._packed:
                    columns = columns / 16  # nibbles come 16 times too large
                parts = [columns[:, ::2], columns[:, 1::2]] if self._halves else [columns]
                both.append([part.contiguous().to(self._device) for part in parts])
            at = self._rank * starts[layers[0]]
            step = layers[1] - layers[0] if len(layers) > 1 else 1
            period = self._rank * (starts[layers[0] + step] - starts[layers[0]])
            yield _Run(layers, (at, at + self._rank * out), period, (both[0], both[1]))

    def __call__(self, stored: Mapping[str, Any], weights: torch.Tensor | None) -> torch.Tensor:
        """See `products.Products`."""
        factors = torch.as_tensor(stored["factors"], device=self._device)
        scale = torch.as_tensor(stored["scale"], device=self._device)
        scale = scale.view(len(factors), -1, self._rank)
        if weights is not None:
            scale = scale * weights.to(self._device)[:, :, None]
        widest = max(
            sum(p.shape[1:]) for run in self._runs for side in run.directions for p in side
        )
        step = max(1, _NUMBERS[self._device.type] // (self._rank * widest))
        parts = [slice(first, first + step) for first in range(0, len(factors), step)]
        most = max(1, step // len(factors))
        return torch.cat([self._products(factors[p], scale[p], most) for p in parts]).cpu()

    def _products(self, factors: torch.Tensor, scale: torch.Tensor, most: int) -> torch.Tensor:
        """The products of some rows, this many layers at once."""
        numbers = self._unpacked(factors)
        total = torch.zeros(len(factors), self._queries, device=self._device)
        for run in self._runs:
            for part in run.parts(most):
                u, v = (
                    self._multiply(numbers, start, part, directions)
                    for start, directions in zip(part.starts, part.directions, strict=True)
                )
                shape = len(part.layers), len(factors), self._rank, self._queries, -1
                sums = u.mul_(v).view(shape).sum(4)  # (G, n, c, Q)
                of_part = scale[:, part.layers.start : part.layers.stop : part.layers.step]
                total += sums.mul_(of_part.transpose(0, 1)[..., None]).sum(2).sum(0)
        return total

    def _unpacked(self, factors: torch.Tensor) -> list[torch.Tensor]:
        """Stored numbers; those of nibbles as int8, low and high ones, or all in a row."""
        if not self._packed:
            return [factors.contiguous()]
        rooms = getattr(self._local, "rooms", None)
        if rooms is None or rooms[0].shape < factors.shape:
            # A new page costs more than what is written there.
            rooms = self._local.rooms = [torch.empty_like(factors) for _ in range(2)]
        low, high = (room[: len(factors)] for room in rooms)
        torch.mul(factors, 16, out=low)
        torch.bitwise_and(factors, 0xF0, out=high)
        halves = [low.view(torch.int8), high.view(torch.int8)]
        return halves if self._halves else [torch.stack(halves, 2).flatten(1)]

    def _multiply(
        self, numbers: list[torch.Tensor], start: int, run: _Run, directions: list[torch.Tensor]
    ) -> torch.Tensor:
        """The products of some layers' u or v with the directions', (G, n * c, Q * r)."""
        count, width = numbers[0].shape
        total = None
        for part, matrices in zip(numbers, directions, strict=True):
            length = matrices.shape[1]
            shape = len(run.layers), count, self._rank, length
            strides = run.period // len(numbers), width, length, 1
            offset = part.storage_offset() + start // len(numbers)
            values = part.as_strided(shape, strides, offset).reshape(len(matrices), -1, length)
            # The copy of bytes and their conversion are faster one after the other.
            if total is None:
                total = torch.bmm(values.contiguous().float(), matrices)
            else:
                total.baddbmm_(values.contiguous().float(), matrices)
        assert total is not None
        return total


def _progressions(sides: list[tuple[int, int]], starts: list[int]) -> Iterator[range]:
    """Divide layers into runs of one shape, equally far apart by number and by place."""
    left = list(range(len(sides)))
    while left:
        first = left[0]
        # In a block of a model few layers have the first one's shape.
        alike = [n for n in left if sides[n] == sides[first]]
        runs = [_longest(first, other - first, set(alike), starts) for other in alike[1:17]]
        run = max(runs, key=len, default=range(first, first + 1))
        yield run
        left = [n for n in left if n not in run]


def _longest(first: int, step: int, alike: set[int], starts: list[int]) -> range:
    distance = starts[first + step] - starts[first]
    last = first + step
    while last + step in alike and starts[last + step] - starts[last] == distance:
        last += step
    return range(first, last + 1, step)
