"""Gradients of single layers as directions in weight space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from rapidin_cli.gradients.capture.sides import Side, WideSide, floats, taken
from rapidin_cli.gradients.compress.tensorsketch import ghost_norm

WHOLE_NUMBERS = 2**24
"""Gradients of more numbers are kept in half precision."""


class Direction(Protocol):
    """B directions in the space of one (O, I) weight."""

    def along(self, inputs: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """Return inputs @ V^T, the change of the layer's outputs: (B, T, I) -> (B, T, O).

        A single direction (B = 1) serves any number of sequences.

        Args:
            part: the outputs that are wanted; all if None.
        """

    def of_words(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of V that an embedding looks up, (B, T) -> (B, T, I)."""

    def dense(self) -> torch.Tensor:
        """Return the directions as matrices, (B, O, I)."""

    def scaled(self, factors: torch.Tensor) -> Direction:
        """Return the directions times `factors` (B,)."""

    def pick(self, rows: slice) -> Direction:
        """Return some of the B directions; a single one stays."""


@dataclass(frozen=True)
class LayerGradient:
    """The gradients G = sum_t d_t x_t^T of one layer for B sequences, in the smaller form.

    Either `matrix` (B, O, I), or the inputs `x` (B, T, I) and output gradients `d` (B, T, O)
    that it is made of.
    """

    x: torch.Tensor
    d: Side
    matrix: torch.Tensor | None = None

    @classmethod
    def of(cls, x: torch.Tensor, d: Side) -> LayerGradient:
        """Keep the gradient of a backward pass, float32."""
        x, d = floats(x, d)
        length, out, inner = x.shape[1], d.shape[2], x.shape[2]
        if isinstance(d, WideSide) or out * inner > length * (out + inner):
            return cls(x, d)
        return cls(x[:, :0], d[:, :0], d.transpose(1, 2) @ x)

    @classmethod
    def of_matrix(cls, matrix: torch.Tensor) -> LayerGradient:
        """Take a dense direction, (B, O, I)."""
        batch, out, inner = matrix.shape
        return cls(matrix.new_zeros(batch, 0, inner), matrix.new_zeros(batch, 0, out), matrix)

    def along(self, inputs: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """See `Direction.along`."""
        part = slice(None) if part is None else part
        if self.matrix is not None:
            return inputs @ _shared(self.matrix[:, part]).mT
        mixed = inputs @ _shared(self.x).mT
        if isinstance(self.d, WideSide):
            if len(self.x) == 1:
                whole = self.d.combined(mixed.flatten(0, 1)[None])[0].view(*mixed.shape[:2], -1)
            else:
                whole = self.d.combined(mixed)
            return whole[..., part]
        return mixed @ _shared(self.d[..., part])

    def of_words(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Direction.of_words`."""
        if self.matrix is not None or not isinstance(self.d, WideSide):
            return taken(self.dense(), ids)
        if len(self.x) == 1:
            return (self.d.columns(ids.flatten()[None]).mT @ self.x)[0].view(*ids.shape, -1)
        return self.d.columns(ids).mT @ self.x

    def dense(self) -> torch.Tensor:
        """See `Direction.dense`."""
        if self.matrix is not None:
            return self.matrix
        if isinstance(self.d, WideSide):
            return self.d.combined(self.x.mT).mT
        return self.d.transpose(1, 2) @ self.x

    def scaled(self, factors: torch.Tensor) -> LayerGradient:
        """See `Direction.scaled`."""
        factors = factors.to(self.x.device)[:, None, None]
        matrix = None if self.matrix is None else self.matrix * factors
        return LayerGradient(self.x * factors, self.d, matrix)

    def norm(self) -> torch.Tensor:
        """Frobenius norms, (B,)."""
        if self.matrix is None:
            return ghost_norm(self.x, self.d)
        norm: torch.Tensor = torch.linalg.vector_norm(self.matrix, dim=(1, 2))
        return norm

    def pick(self, rows: slice) -> LayerGradient:
        """See `Direction.pick`."""
        if len(self.x) == 1:
            return self
        matrix = None if self.matrix is None else self.matrix[rows]
        d = self.d.pick(rows) if isinstance(self.d, WideSide) else self.d[rows]
        return LayerGradient(self.x[rows], d, matrix)


@dataclass(frozen=True)
class PackedMatrix:
    """Directions as matrices in half precision.

    What it loses is as small as what float32 loses in a pass: errors of many numbers cancel.

    Attributes:
        values: (B, O, I) float16. scales: (B,), what they are times.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, matrices: torch.Tensor) -> PackedMatrix:
        """Pack (B, O, I)."""
        scales = matrices.abs().amax((1, 2)).clamp_min(1e-30)
        return cls((matrices / scales[:, None, None]).half(), scales)

    def along(self, inputs: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """See `Direction.along`."""
        some = self.values if part is None else self.values[:, part]
        return inputs @ _shared(some.float()).mT * self.scales[:, None, None]

    def of_words(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Direction.of_words`."""
        return taken(self.values, ids).float() * self.scales[:, None, None]

    def dense(self) -> torch.Tensor:
        """See `Direction.dense`."""
        return self.values.float() * self.scales[:, None, None]

    def scaled(self, factors: torch.Tensor) -> PackedMatrix:
        """See `Direction.scaled`."""
        return PackedMatrix(self.values, self.scales * factors.to(self.scales.device))

    def pick(self, rows: slice) -> PackedMatrix:
        """See `Direction.pick`."""
        return self if len(self.values) == 1 else PackedMatrix(self.values[rows], self.scales[rows])


def _shared(matrices: torch.Tensor) -> torch.Tensor:
    """A batch of one as a plain matrix: one product instead of B."""
    return matrices[0] if len(matrices) == 1 else matrices
