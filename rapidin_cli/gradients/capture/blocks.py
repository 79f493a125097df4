"""Output gradients of fused experts: E matrices in one tensor, and each row goes to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rapidin_cli.gradients.capture.sides import Sketch, WideSide


@dataclass(frozen=True)
class BlocksSide(WideSide):
    """d (B, S, E * O): each row's numbers, and which of the E blocks they are in.

    Attributes:
        values: (B, S, O).
        blocks: (B, S); values are zero at padding.
        count: E.
    """

    values: torch.Tensor
    blocks: torch.Tensor
    count: int

    @property
    def shape(self) -> torch.Size:
        """See `WideSide.shape`."""
        return torch.Size((*self.blocks.shape, self.count * self._size))

    @property
    def _size(self) -> int:
        return int(self.values.shape[2])

    def pick(self, rows: slice) -> BlocksSide:
        """See `WideSide.pick`."""
        return replace(self, values=self.values[rows], blocks=self.blocks[rows])

    def joined(self, x: torch.Tensor) -> tuple[torch.Tensor, BlocksSide]:
        """See `WideSide.joined`."""
        one = replace(
            self, values=self.values.flatten(0, 1)[None], blocks=self.blocks.flatten()[None]
        )
        return x.flatten(0, 1)[None], one

    def kept(self) -> BlocksSide:
        """See `WideSide.kept`."""
        return self

    def _used(self) -> Iterator[tuple[int, slice, torch.Tensor]]:
        """The blocks that have rows: which, where in E * O, and (B, S) whether a row is there."""
        for block in self.blocks.unique().tolist():
            where = slice(block * self._size, (block + 1) * self._size)
            yield block, where, self.blocks == block

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `WideSide.pieces`; blocks without a row are left out."""
        for _, where, here in self._used():
            yield where, self.values.float() * here[..., None]

    def sketched(self, sketch: Sketch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `WideSide.sketched`."""
        made = torch.zeros(*self.blocks.shape, sketch.size, device=self.values.device)
        for _, where, here in self._used():
            made[here] = sketch.part(where.start, where.stop, self.values[here].float().T).T
        return made, self.gram()

    def gram(self) -> torch.Tensor:
        """See `WideSide.gram`."""
        values = self.values.float()
        return (values @ values.mT) * (self.blocks[:, :, None] == self.blocks[:, None])

    def along(self, matrix: torch.Tensor) -> torch.Tensor:
        """See `WideSide.along`."""
        total = torch.zeros(*self.blocks.shape, matrix.shape[-1], device=self.values.device)
        for _, where, here in self._used():
            part = matrix[..., where, :]
            if part.dim() == 2:
                total[here] = self.values[here].float() @ part
            else:
                total += (self.values.float() * here[..., None]) @ part
        return total

    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        """See `WideSide.combined`."""
        made = factors.new_zeros(len(factors), factors.shape[1], self.shape[2])
        for _, where, here in self._used():
            made[..., where] = (factors * here[:, None]) @ self.values.float()
        return made

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """See `WideSide.columns`."""
        inside = (ids % self._size)[:, None].expand(-1, self.blocks.shape[1], -1)
        here = self.blocks[:, :, None] == (ids // self._size)[:, None]
        return self.values.float().gather(2, inside) * here
