"""Products of stored bytes and bits with directions, by a CPU's integer instructions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import numpy as np
import torch

from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.rows.integers import COLUMNS, plane_count, planes_of

# Measured (tests/benchmarks/scan.py): 16 columns of a matrix cost what 4 do, and up to 3 are
# faster one by one.
_TOGETHER, _SINGLE = 16, 3
# Bytes that are unpacked, or read for several matrices, at once: smaller tiles stay nearer to a
# core, but threads then wait for one another at the interpreter's lock. Products at once.
_TILE, _PRODUCTS = 2**22, 2**18


@dataclass(frozen=True)
class _Part:
    """Some layers of a row, multiplied at once.

    Attributes:
        layers: which; of a row in which every layer counts alike, any one.
        start, stop: of stored numbers.
        matrices: M of (m, C) int8 for the stored bytes (bits) from `start` on; their M * C
            columns are S layers, P planes and Q queries.
        steps: (S, P * Q) float32, what products count.
    """

    layers: slice
    start: int
    stop: int
    matrices: list[torch.Tensor]
    steps: torch.Tensor

    def multiply(self, sketch: torch.Tensor, signs: bool, into: torch.Tensor) -> None:
        """Put the integer products of stored sketches with all matrices into (M, n, C)."""
        again = len(self.matrices) > 1 or signs
        step = max(8, _TILE // (self.stop - self.start)) if again else len(sketch)
        for first in range(0, len(sketch), step):
            rows = slice(first, first + step)
            values = self._bits(sketch[rows]) if signs else sketch[rows, self.start : self.stop]
            for matrix, out in zip(self.matrices, into, strict=True):
                torch._int_mm(values, matrix, out=out[rows])

    def _bits(self, sketch: torch.Tensor) -> torch.Tensor:
        packed = sketch[:, self.start // 8 : self.stop // 8].numpy()
        return torch.from_numpy(np.unpackbits(packed, axis=1).view(np.int8))


class IntegerSketches:
    """Products of sketch rows of int8 numbers or signs.

    Args:
        layout: of the rows.
        directions: (Q, K) float32.
    """

    def __init__(self, layout: RowLayout, directions: torch.Tensor) -> None:
        self._signs = layout.spec.precision == "sign"
        ends = [0, *accumulate(layout.blocks)]
        self._layers = [slice(*pair) for pair in pairwise(ends)]
        self._directions = directions

    def products(self, sketch: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the products (n, Q) of stored sketches (n, .)."""
        count, queries = len(sketch), len(self._directions)
        parts = self._whole if weights is None else self._by_layer
        of_layers = torch.ones(count, len(self._layers)) if weights is None else weights
        total = torch.zeros(count, parts[0].steps.shape[1])
        for _, alike in groupby(parts, lambda part: (part.steps.shape, len(part.matrices))):
            left = list(alike)
            most = max(1, _PRODUCTS // (count * left[0].steps.numel()))
            for first in range(0, len(left), most):
                run = left[first : first + most]
                layers = len(run[0].steps)
                matrices = len(run[0].matrices)
                shape = len(run), matrices, count, run[0].matrices[0].shape[1]
                products = torch.empty(shape, dtype=torch.int32)
                for part, into in zip(run, products, strict=True):
                    part.multiply(sketch, self._signs, into)
                # (G, n, S, P * Q)
                found = products.transpose(1, 2).reshape(len(run), count, layers, -1).float()
                found.mul_(torch.stack([part.steps for part in run])[:, None])
                of_run = torch.stack([of_layers[:, part.layers] for part in run])
                total += found.mul_(of_run[..., None]).sum(0).sum(1)
        found = total.view(count, -1, queries).sum(1)
        if self._signs:
            # From bits, 1 and 0, to signs: 2 b - 1.
            found -= of_layers[:, : len(self._layers)] @ self._sums
        return found

    @cached_property
    def _sums(self) -> torch.Tensor:
        """The sum of each layer's direction, (L, Q)."""
        return torch.stack([self._directions[:, layer].sum(1) for layer in self._layers])

    @cached_property
    def _whole(self) -> list[_Part]:
        """Every layer counts alike: a row is one layer."""
        pieces = _pieces(slice(0, self._layers[-1].stop))
        planes = plane_count(self._directions, pieces)
        return [self._part(slice(0, 1), [piece], planes) for piece in pieces]

    @cached_property
    def _by_layer(self) -> list[_Part]:
        """Each layer has a weight in each row."""
        planes = plane_count(self._directions, self._layers)
        most = max(1, _TOGETHER // (len(self._directions) * planes))
        parts = []
        for first in range(0, len(self._layers), most):
            layers = self._layers[first : first + most]
            where = slice(first, first + len(layers))
            if layers[-1].stop - layers[0].start <= COLUMNS:
                parts.append(self._part(where, layers, planes))
                continue
            for number, layer in enumerate(layers, first):
                alone = slice(number, number + 1)
                parts += [self._part(alone, [piece], planes) for piece in _pieces(layer)]
        return parts

    def _part(self, which: slice, columns: Sequence[slice], planes: int) -> _Part:
        start, stop = columns[0].start, columns[-1].stop
        if self._signs:
            start, stop = start // 8 * 8, -(-stop // 8) * 8
        count = len(self._directions) * planes
        matrix = torch.zeros(len(columns) * count, stop - start, dtype=torch.int8)
        steps = []
        for n, segment in enumerate(columns):
            numbers, step = planes_of(self._directions[:, segment], planes)
            where = slice(segment.start - start, segment.stop - start)
            matrix[n * count : (n + 1) * count, where] = numbers.flatten(0, 1)
            steps.append(2 * step if self._signs else step)
        matrices = [matrix] if len(matrix) > _SINGLE else list(matrix.split(1))
        return _Part(
            which, start, stop, [m.T.contiguous() for m in matrices], torch.stack(steps).flatten(1)
        )


def _pieces(columns: slice) -> list[slice]:
    """Parts whose products fit 32 bits, cut where a byte of bits ends."""
    first = columns.start // 8 * 8
    ends = [columns.start, *range(first + COLUMNS, columns.stop, COLUMNS), columns.stop]
    return [slice(*pair) for pair in pairwise(ends)]
