"""What a query's gradient is multiplied by: inverse curvature, or the optimizer's scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch

from rapidin_cli.gradients.capture.sides import WideSide, taken
from rapidin_cli.gradients.compress.tensorsketch import BlockSketch
from rapidin_cli.gradients.curvature import LayerCurvature, rotated
from rapidin_cli.gradients.directions import Direction, LayerGradient
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.rows.kinds import SketchRows
from rapidin_storage import Snapshot

# Bytes of curvature that stay in memory between two questions.
_KEPT_BYTES = 2**27


class Preconditioner(Protocol):
    """A symmetric positive matrix P_l for each layer l."""

    on_rows: bool
    """Whether P acts on sketched rows; else on gradients, before they are sketched."""

    def direction(self, number: int, gradient: LayerGradient) -> Direction:
        """Return P_l g for B gradients of layer `number`."""

    def change(self, number: int, gradients: LayerGradient) -> torch.Tensor:
        """Do the same, as matrices (B, O, I)."""

    def apply_to_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """Return P applied to sketched directions, (Q, K)."""


@dataclass(frozen=True)
class _Rotated:
    """A direction Q_S (weights * M) Q_A^T, where M is a gradient in the basis Q."""

    gradient: LayerGradient
    weights: torch.Tensor  # (O, I)
    inputs: torch.Tensor  # Q_A
    outputs: torch.Tensor  # Q_S

    def along(self, inputs: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """See `Direction.along`."""
        matrix = self.gradient.dense() * self.weights
        changed = LayerGradient.of_matrix(matrix).along(rotated(inputs, self.inputs))
        made = rotated(changed, self.outputs.mT)
        return made if part is None else made[..., part]

    def dense(self) -> torch.Tensor:
        """See `Direction.dense`."""
        if isinstance(self.gradient.d, WideSide):  # a piece at a time: its axes are its own
            count, inner = len(self.gradient.x), self.weights.shape[1]
            made = self.weights.new_zeros(count, len(self.weights), inner)
            for where, part in self.gradient.d.gradients(self.gradient.x):
                made[:, where] = rotated(part * self.weights[where], self.inputs.mT)
            return made
        matrix = rotated(self.gradient.dense() * self.weights, self.inputs.mT)
        return rotated(matrix.mT, self.outputs.mT).mT

    def of_words(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Direction.of_words`."""
        return taken(self.dense(), ids)

    def scaled(self, factors: torch.Tensor) -> _Rotated:
        """See `Direction.scaled`."""
        scaled = self.gradient.scaled(factors)
        return _Rotated(scaled, self.weights, self.inputs, self.outputs)

    def pick(self, rows: slice) -> _Rotated:
        """See `Direction.pick`."""
        return _Rotated(self.gradient.pick(rows), self.weights, self.inputs, self.outputs)


@dataclass(frozen=True)
class _Basis:
    """A layer in which a matrix is diagonal: its axes (see `LayerCurvature`) and its diagonal."""

    inputs: torch.Tensor
    outputs: torch.Tensor
    weights: torch.Tensor  # (O, I)


class _Diagonal:
    """A matrix that is diagonal in a known basis of each layer's weights.

    Args:
        layer: makes the basis of a layer.
        keep: whether it is made once.
    """

    on_rows = False

    def __init__(self, layer: Callable[[int], _Basis], *, keep: bool) -> None:
        self._layer = cache(layer) if keep else layer

    def direction(self, number: int, gradient: LayerGradient) -> _Rotated:
        """See `Preconditioner.direction`."""
        layer = self._layer(number)
        if gradient.matrix is None:
            side = gradient.d
            if isinstance(side, torch.Tensor):  # else its axes are its own
                side = rotated(side, layer.outputs)
            turned = LayerGradient(rotated(gradient.x, layer.inputs), side)
        else:
            turned = LayerGradient.of_matrix(
                rotated(rotated(gradient.matrix, layer.inputs).mT, layer.outputs).mT
            )
        return _Rotated(turned, layer.weights, layer.inputs, layer.outputs)

    def change(self, number: int, gradients: LayerGradient) -> torch.Tensor:
        """See `Preconditioner.change`."""
        return self.direction(number, gradients).dense()

    def apply_to_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """Not here: this matrix acts on gradients."""
        raise NotImplementedError


class Ekfac(_Diagonal):
    """The inverse of EK-FAC curvature, damped layer by layer.

    Args:
        layers: the curvature.
        damping: what is added to the eigenvalues of a layer, as a share of their mean
            (Grosse et al. 2023 take 0.1).
        device: where gradients are.
    """

    def __init__(
        self, layers: Sequence[LayerCurvature], damping: float, device: torch.device
    ) -> None:
        def basis(number: int) -> _Basis:
            layer = layers[number]
            return _Basis(
                layer.inputs.to(device),
                layer.outputs.to(device),
                _inverse(layer.values.to(device), damping),
            )

        # On a CPU those of a large model are read again for each question: they may be larger.
        keep = device.type != "cpu" or getattr(layers, "nbytes", 0) <= _KEPT_BYTES
        super().__init__(basis, keep=keep)


class Adam(_Diagonal):
    """What Adam divides a gradient by: the roots of its second moments, one for each weight.

    The direction is that of the optimizer's own step (LESS, Xia et al. 2024, arXiv 2402.04333),
    with the second moments of the checkpoint taken as constant.

    Args:
        moments: for each layer, the bias-corrected second moments (O, I).
        damping: what is added to their roots, as a share of the layer's mean root. It stands
            in for Adam's epsilon, which lets weights that never had a gradient take over.
        device: where gradients are.
    """

    def __init__(
        self, moments: Sequence[torch.Tensor], damping: float, device: torch.device
    ) -> None:
        own_axes = torch.empty(0, 0, device=device)
        layers = [
            _Basis(own_axes, own_axes, _inverse(layer.to(device).sqrt(), damping))
            for layer in moments
        ]
        super().__init__(layers.__getitem__, keep=False)


def _inverse(values: torch.Tensor, damping: float) -> torch.Tensor:
    """1 / (values + damping * mean); zero where a layer has no gradient at all."""
    damped = values + damping * values.mean()
    nothing = damped <= 0
    return damped.reciprocal_().masked_fill_(nothing, 0.0)


@dataclass(frozen=True)
class _Unsketched:
    """A direction S^T v, formed only when it is used: v is much smaller."""

    block: BlockSketch
    sketches: torch.Tensor  # (B, k)

    def along(self, inputs: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """See `Direction.along`."""
        return LayerGradient.of_matrix(self.dense()).along(inputs, part)

    def dense(self) -> torch.Tensor:
        """See `Direction.dense`."""
        return self.block.transposed(self.sketches)

    def of_words(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Direction.of_words`."""
        return taken(self.dense(), ids)

    def scaled(self, factors: torch.Tensor) -> _Unsketched:
        """See `Direction.scaled`."""
        return _Unsketched(self.block, self.sketches * factors.to(self.sketches.device)[:, None])

    def pick(self, rows: slice) -> _Unsketched:
        """See `Direction.pick`."""
        return self if len(self.sketches) == 1 else _Unsketched(self.block, self.sketches[rows])


class Gram:
    """The damped inverse of the second moments of the cached sketches, layer by layer.

    With R the (N, k) un-normalised sketches of a layer, P = S^T (R^T R / N + lambda)^-1 S for
    the sketching map S. Sketches are linear, so the same P acts on rows and on gradients:
    what exact scores leave out is the rows' quantisation, not their hashing. With fewer rows
    than dimensions the inverse is taken on the side of the rows (Woodbury).

    Args:
        snapshot: the cache.
        layout: of its rows.
        blocks: the sketch of each layer.
        damping: lambda, as a share of the mean of the non-zero eigenvalues' upper bound:
            trace / min(N, k).
        device: where gradients are.
    """

    on_rows = True

    def __init__(
        self,
        snapshot: Snapshot,
        layout: RowLayout,
        blocks: Sequence[BlockSketch],
        damping: float,
        device: torch.device,
    ) -> None:
        self._blocks = blocks
        self._sizes = layout.blocks
        self._device = device
        count = snapshot.commit.rows
        self._solvers = [_Solver(size, count) for size in layout.blocks]
        kind = SketchRows(layout)
        for start, stop, whole in snapshot.stream(kind.scored):
            filled = np.flatnonzero(snapshot.digests[start:stop].any(axis=1))
            stored = {name: values[filled] for name, values in whole.items()}
            norm = torch.from_numpy(stored["norm"])
            for number, block in enumerate(kind.values(stored).split(list(layout.blocks), dim=1)):
                self._solvers[number].add(block * norm[:, number, None])
        for solver in self._solvers:
            solver.finish(damping)

    def apply_to_rows(self, directions: torch.Tensor) -> torch.Tensor:
        """See `Preconditioner.apply_to_rows`."""
        parts = directions.split(list(self._sizes), dim=1)
        solved = [s.solve(part) for s, part in zip(self._solvers, parts, strict=True)]
        return torch.cat(solved, dim=1)

    def direction(self, number: int, gradient: LayerGradient) -> _Unsketched:
        """See `Preconditioner.direction`."""
        block = self._blocks[number]
        if gradient.matrix is None:
            sketch = block(gradient.x, gradient.d)[0]
        else:
            sketch = block.of_gradient(gradient.matrix)[0]
        return _Unsketched(block, self._solvers[number].solve(sketch.cpu()).to(self._device))

    def change(self, number: int, gradients: LayerGradient) -> torch.Tensor:
        """See `Preconditioner.change`."""
        return self.direction(number, gradients).dense()


class _Solver:
    """Solves (R^T R / N + lambda) v = q for N rows R (N, k) that come in parts.

    Where N is less than k the rows are kept, else the sum of their outer products.
    """

    def __init__(self, size: int, count: int) -> None:
        self._count = count
        self._kept: list[torch.Tensor] = []
        self._sum = None if count < size else torch.zeros(size, size)

    def add(self, rows: torch.Tensor) -> None:
        if self._sum is None:
            self._kept.append(rows)
        else:
            self._sum += rows.T @ rows

    def finish(self, damping: float) -> None:
        if self._sum is None:
            self._rows = torch.cat(self._kept) / self._count**0.5
            moments = self._rows @ self._rows.T
        else:
            moments = self._sum / self._count
        self._damping = damping * float(moments.trace() / len(moments))
        if self._damping:  # else no row has a gradient here
            unit = torch.eye(len(moments), dtype=torch.float64)
            self._factor = torch.linalg.cholesky(moments.double() + self._damping * unit)

    def solve(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the solutions for vectors (Q, k)."""
        if not self._damping:
            return torch.zeros_like(vectors)
        if self._sum is not None:
            solved: torch.Tensor = torch.cholesky_solve(vectors.double().mT, self._factor)
            return solved.mT.float()
        inner = torch.cholesky_solve((self._rows @ vectors.mT).double(), self._factor)
        rest: torch.Tensor = vectors - inner.float().mT @ self._rows
        return rest / self._damping
