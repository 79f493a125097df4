"""Products of stored bytes and bits with a few directions, by compiled loops (`kernels`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from rapidin_cli.gradients.layout import Array, RowLayout

# Columns whose products are added in float32 before the next ones: more would cost digits.
_COLUMNS = 8192
# What rounding may change of a direction for bits, relative to it: rows are off by more than half.
_ERROR = 3e-4


@cache
def kernels() -> ModuleType | None:
    """Return the compiled loops, or None where there is no numba that compiles them."""
    try:
        from rapidin_cli.gradients.rows import kernels as compiled
    except Exception:  # Whatever a numba says that does not know this Python, numpy or machine.
        return None
    return compiled


class BytesWithFew:
    """Products of int8 sketches.

    Args:
        layout: of the rows.
        directions: (Q, K) float32.
        loops: the compiled ones.
    """

    def __init__(self, layout: RowLayout, directions: torch.Tensor, loops: ModuleType) -> None:
        self._directions = np.ascontiguousarray(directions.numpy())
        self._loops = loops
        self._of_row = _segments([sum(layout.blocks)])
        self._of_layers = _segments(layout.blocks)

    def products(self, sketch: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the products (n, Q) of stored sketches (n, K)."""
        rows, of_layers = np.ascontiguousarray(sketch.numpy()), _weights(sketch, weights)
        found = np.empty((len(self._directions), len(rows)), np.float32)
        segments = self._of_row if weights is None else self._of_layers
        for direction, into in zip(self._directions, found, strict=True):
            self._loops.multiply_bytes(rows, direction, *segments, of_layers, into)
        return torch.from_numpy(found.T)


def _segments(blocks: Sequence[int]) -> tuple[Array, Array]:
    """Cut blocks that are long: the ends of segments, (T + 1,), and the block of each, (T,)."""
    ends, layers = [0], []
    for layer, (start, stop) in enumerate(pairwise([0, *accumulate(blocks)])):
        for first in range(start, stop, _COLUMNS):
            ends.append(min(first + _COLUMNS, stop))
            layers.append(layer)
    return np.array(ends), np.array(layers)


def _weights(sketch: torch.Tensor, weights: torch.Tensor | None) -> Array:
    """The weights (n, L) of rows, or one of 1 for each row."""
    if weights is None:
        return np.ones((len(sketch), 1), np.float32)
    return np.ascontiguousarray(weights.numpy(), np.float32)


class _Parts(NamedTuple):
    """A direction for bits, as `kernels.multiply_bits` takes it."""

    numbers: Array
    starts: Array
    layers: Array
    steps: Array

    def sums(self, count: int) -> torch.Tensor:
        """What each of so many layers adds up to, (L,) float32."""
        each = self.numbers.sum((1, 2), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            each *= self.steps
        return torch.from_numpy(np.bincount(self.layers, each, count)).float()


class BitsWithFew:
    """Products of signs.

    Directions are rounded to multiples of a step, one for each 128 columns.

    Args:
        layout: of the rows.
        directions: (Q, K) float32.
        loops: the compiled ones.
    """

    def __init__(self, layout: RowLayout, directions: torch.Tensor, loops: ModuleType) -> None:
        self._blocks = layout.blocks
        self._directions = directions.numpy()
        self._loops = loops

    def products(self, sketch: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the products (n, Q) of packed signs (n, ceil(K / 8))."""
        rows = np.ascontiguousarray(sketch.numpy())
        if rows.shape[1] < self._loops.BYTES:
            rows = np.pad(rows, ((0, 0), (0, self._loops.BYTES - rows.shape[1])))
        of_layers = _weights(sketch, weights)
        found = np.empty((len(self._directions), len(rows)), np.float32)
        known = self._of_row if weights is None else self._of_layers
        for (parts, sums), into in zip(known, found, strict=True):
            self._loops.multiply_bits(rows, *parts, of_layers, into)
            # From bits, 1 and 0, to signs: 2 b - 1.
            into *= 2
            into -= (torch.from_numpy(of_layers) @ sums).numpy()
        return torch.from_numpy(found.T)

    @cached_property
    def _of_row(self) -> list[tuple[_Parts, torch.Tensor]]:
        return self._parts([sum(self._blocks)])

    @cached_property
    def _of_layers(self) -> list[tuple[_Parts, torch.Tensor]]:
        return self._parts(self._blocks)

    def _parts(self, blocks: Sequence[int]) -> list[tuple[_Parts, torch.Tensor]]:
        found = []
        for direction in self._directions:
            parts = _rounded(direction, blocks, self._loops.BYTES, self._loops.MOST)
            found.append((parts, parts.sums(len(blocks))))
        return found


def _rounded(direction: Array, blocks: Sequence[int], width: int, most: int) -> _Parts:
    """Write a direction as parts of `width` bytes, each with its layer and step.

    A part with a few large numbers comes twice, the second time with what rounding left: they
    must not cost the others.
    """
    places = list(_places(blocks, width))
    values = np.zeros((len(places), 8 * width), np.float32)
    for part, (byte, _, start, stop) in zip(values, places, strict=True):
        part[start - 8 * byte : stop - 8 * byte] = direction[start:stop]
    columns = np.array([stop - start for *_, start, stop in places])
    starts = np.array([byte for byte, *_ in places])
    layers = np.array([layer for _, layer, *_ in places])
    steps = _steps(values, most)
    # As for a normal distribution, from the mean of what is not padding.
    deviation = 1.25 * np.abs(values).sum(1) / columns
    coarse = np.flatnonzero(steps / 12**0.5 > _ERROR * deviation)
    # What is not finite has a step that is not, and no numbers.
    with np.errstate(invalid="ignore"):
        numbers = np.nan_to_num(np.rint(values / steps[:, None]))
        rest = values[coarse] - numbers[coarse] * steps[coarse, None]
        finer = _steps(rest, most)
        numbers = np.concatenate([numbers, np.nan_to_num(np.rint(rest / finer[:, None]))])
    # (T, bytes, 8), the highest bit first -> (T, 8, bytes), the lowest first.
    by_bit = numbers.astype(np.int16).reshape(-1, width, 8)[:, :, ::-1].transpose(0, 2, 1)
    return _Parts(
        np.ascontiguousarray(by_bit),
        np.concatenate([starts, starts[coarse]]),
        np.concatenate([layers, layers[coarse]]),
        np.concatenate([steps, finer]),
    )


def _places(blocks: Sequence[int], width: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first byte, layer, first column, last column + 1) of the parts of all layers."""
    ends = [0, *accumulate(blocks)]
    last = max(0, -(-ends[-1] // 8) - width)
    for layer, (start, stop) in enumerate(pairwise(ends)):
        while start < stop:
            byte = min(start // 8, last)
            until = min(8 * (byte + width), stop)
            yield byte, layer, start, until
            start = until


def _steps(values: Array, most: int) -> Any:
    """Return what the whole numbers of each part count, (T,) float32."""
    return np.maximum(np.abs(values).max(1, initial=0) / np.float32(most), np.float32(1e-30))
