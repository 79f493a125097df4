"""Products of stored bytes and bits with a few directions, by compiled loops (`kernels`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, pairwise
from types import ModuleType
from typing import NamedTuple

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


class BitsWithFew:
    """Products of signs.

    Directions are rounded to multiples of small steps, other ones for each 128 columns.

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
            parts = _divided(direction, blocks, self._loops.BYTES, self._loops.WORTH[:, None])
            each = (parts.numbers * self._loops.WORTH[:, None]).sum((1, 2), dtype=np.float64)
            with np.errstate(invalid="ignore"):
                sums = np.bincount(parts.layers, each * parts.steps, len(blocks))
            found.append((parts, torch.from_numpy(sums).float()))
        return found


def _divided(direction: Array, blocks: Sequence[int], width: int, worth: Array) -> _Parts:
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
    # (T, bytes, 8), the highest bit first -> (T, 8, bytes), the lowest first.
    values = values.reshape(-1, width, 8)[:, :, ::-1].transpose(0, 2, 1)
    numbers, steps = _rounded(values, worth)
    # As for a normal distribution, from the mean of what is not padding.
    deviation = 1.25 * np.abs(values).sum((1, 2)) / columns
    coarse = np.flatnonzero(steps * (np.square(worth).mean() / 12) ** 0.5 > _ERROR * deviation)
    with np.errstate(invalid="ignore"):
        rest = values[coarse] - numbers[coarse] * (steps[coarse, None, None] * worth)
    finer = _rounded(rest, worth)
    return _Parts(
        np.concatenate([numbers, finer[0]]),
        np.concatenate([starts, starts[coarse]]),
        np.concatenate([layers, layers[coarse]]),
        np.concatenate([steps, finer[1]]),
    )


def _rounded(values: Array, worth: Array) -> tuple[Array, Array]:
    """Write values (T, 8, bytes) as numbers of int16 times worth (8, 1) times steps (T,).

    What is not finite has a step that is not, and no numbers.
    """
    most = np.abs(values / worth).max((1, 2), initial=0)
    steps = np.maximum(most / np.float32(32767), np.float32(1e-30))
    with np.errstate(invalid="ignore"):
        numbers = np.nan_to_num(np.rint(values / (steps[:, None, None] * worth)))
    # Rounding of the step itself must not make 32767 one more.
    return np.ascontiguousarray(numbers.clip(-32767, 32767), np.int16), steps


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
