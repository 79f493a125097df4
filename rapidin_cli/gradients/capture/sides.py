"""The output side of a layer's gradient: numbers, or what is too wide to be formed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch


class Sketch(Protocol):
    """A linear map R^O -> R^k that can be taken piece by piece."""

    size: int
    """k"""

    def part(self, first: int, last: int, values: torch.Tensor) -> torch.Tensor:
        """Return the share of some coordinates, (last - first, n) -> (k, n)."""

    def of_ones(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the sketches of vectors with a single one, (...) -> (..., k)."""


class WideSide(ABC):
    """d (B, T, O) where O is a vocabulary, or all experts' outputs one after the other."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(B, T, O)"""

    @abstractmethod
    def pick(self, rows: slice) -> WideSide:
        """Return some of the B rows."""

    @abstractmethod
    def joined(self, x: torch.Tensor) -> tuple[torch.Tensor, WideSide]:
        """Return all rows as one, with their inputs x (B, T, I): T becomes B * T."""

    @abstractmethod
    def kept(self) -> WideSide:
        """Return the same with its numbers formed once, if they are not too many."""

    @abstractmethod
    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield all numbers, piece by piece: where in O, and (B, T, n) float32."""

    def gradients(self, x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield d^T x for inputs x (B, T, I), piece by piece: where in O, and (B, n, I)."""
        for where, values in self.pieces():
            yield where, values.mT @ x

    @abstractmethod
    def sketched(self, sketch: Sketch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a sketch of the last axis makes of it, (B, T, k), and d d^T, (B, T, T)."""

    @abstractmethod
    def gram(self) -> torch.Tensor:
        """Return d d^T, (B, T, T)."""

    @abstractmethod
    def along(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return d M, (B, T, n), for M (O, n) or (B, O, n)."""

    @abstractmethod
    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        """Return factors d, (B, w, O), for factors (B, w, T)."""

    @abstractmethod
    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the numbers at places (B, S) of O, each row's own: (B, T, S)."""


def taken(matrix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of M (V, n) or of each M_b (B, V, n), for ids (B, S): (B, S, n)."""
    if matrix.dim() == 2:
        return matrix[ids]
    if len(matrix) == 1:
        return matrix[0][ids]
    return matrix.gather(1, ids[..., None].expand(-1, -1, matrix.shape[2]))


Side = torch.Tensor | WideSide
"""d (B, T, O) of a layer."""


def floats(x: torch.Tensor, d: Side) -> tuple[torch.Tensor, Side]:
    """Return both in float32, in which wide sides are formed in any case."""
    return x.float(), d if isinstance(d, WideSide) else d.float()


def joined(x: torch.Tensor, d: Side) -> tuple[torch.Tensor, Side]:
    """Return all sequences as one: (1, B * T, I) and (1, B * T, O)."""
    if isinstance(d, WideSide):
        return d.joined(x)
    return x.flatten(0, 1)[None], d.flatten(0, 1)[None]
