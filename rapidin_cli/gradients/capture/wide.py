"""Output gradients as wide as a vocabulary, kept as what they are made of.

The gradient of a (V, H) matrix of tokens is a sum of outer products d_t x_t^T, as every other.
As the output layer, x is its input and d = softmax - one-hot, a number for each word of the
vocabulary; as the embedding, x is the gradient of what was looked up and d = one-hot. Neither
these d nor anything of V x H is formed whole: sums over the vocabulary are taken piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rapidin_cli.gradients.capture.sides import Sketch, WideSide, taken

PIECE = 4096
"""Words of the vocabulary that are looked at together."""

# Numbers that are kept where they are needed several times, 4 bytes each.
_KEPT = 2**26


class Dense(Protocol):
    """d (B, T, V) of the output layer's use."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def shape(self) -> torch.Size:
        """(B, T, V)"""

    def piece(self, first: int, last: int) -> torch.Tensor:
        """Return the numbers of some words, (B, T, last - first) float32."""

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the numbers of words (B, S), each row's own: (B, T, S)."""

    def pick(self, rows: slice) -> Dense:
        """Return some of the B rows."""

    def joined(self) -> Dense:
        """Return all rows as one, (1, B * T, V)."""


@dataclass(frozen=True)
class Formed:
    """What exists: of a model whose logits are more than its output layer's."""

    values: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    @property
    def shape(self) -> torch.Size:
        """See `Dense.shape`."""
        return self.values.shape

    def piece(self, first: int, last: int) -> torch.Tensor:
        """See `Dense.piece`."""
        return self.values[..., first:last].float()

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Dense.columns`."""
        wanted = ids[:, None].expand(-1, self.values.shape[1], -1)
        return self.values.gather(2, wanted).float()

    def pick(self, rows: slice) -> Formed:
        """See `Dense.pick`."""
        return Formed(self.values[rows])

    def joined(self) -> Formed:
        """See `Dense.joined`."""
        return Formed(self.values.flatten(0, 1)[None])


Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Multiplies (..., H) and (n, H), inputs of the output layer and rows of its weight: (..., n)."""


@dataclass(frozen=True)
class Softmax:
    """d of the cross-entropy: factor (softmax(W x) - one-hot(target)), made when it is used.

    Attributes:
        hidden: x (B, T, H). weight: W (V, H).
        logs: (B, T), logarithms of the softmax's denominators.
        targets: (B, T), the words that are learnt.
        factors: (B, T), what each token's loss counts; 0 at padding.
        logits: as the model computes them.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    logs: torch.Tensor
    targets: torch.Tensor
    factors: torch.Tensor
    logits: Logits

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.hidden.device

    @property
    def shape(self) -> torch.Size:
        """See `Dense.shape`."""
        return torch.Size((*self.hidden.shape[:2], len(self.weight)))

    def piece(self, first: int, last: int) -> torch.Tensor:
        """See `Dense.piece`."""
        # Word by word: a sketch adds up words.
        found = self.logits(self.weight[first:last], self.hidden.flatten(0, 1)).float()
        found = found.sub_(self.logs.flatten()).exp_()
        targets = self.targets.flatten()
        here = (targets >= first) & (targets < last)
        places = (targets - first).clamp(0, last - first - 1)
        found.scatter_add_(0, places[None], -here[None].to(found.dtype))
        found.mul_(self.factors.flatten())
        return found.view(-1, *self.targets.shape).permute(1, 2, 0)

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Dense.columns`."""
        rows = [
            self.logits(x, self.weight[i]).float() for x, i in zip(self.hidden, ids, strict=True)
        ]
        found = (torch.stack(rows) - self.logs[..., None]).exp()
        found -= (self.targets[..., None] == ids[:, None]).to(found.dtype)
        return found * self.factors[..., None]

    def pick(self, rows: slice) -> Softmax:
        """See `Dense.pick`."""
        return replace(
            self,
            hidden=self.hidden[rows],
            logs=self.logs[rows],
            targets=self.targets[rows],
            factors=self.factors[rows],
        )

    def joined(self) -> Softmax:
        """See `Dense.joined`."""
        parts = self.logs, self.targets, self.factors
        logs, targets, factors = (part.flatten()[None] for part in parts)
        return Softmax(
            self.hidden.flatten(0, 1)[None], self.weight, logs, targets, factors, self.logits
        )


@dataclass(frozen=True)
class WordsSide(WideSide):
    """d (B, T, V) of one use of a matrix of tokens, or of two: the output layer's comes first.

    Attributes:
        size: V.
        dense: the output layer's use, T1 tokens.
        ids: the embedding's, (B, T2): where each token's one is.
    """

    size: int
    dense: Dense | None = None
    ids: torch.Tensor | None = None

    @classmethod
    def merged(cls, parts: Sequence[WordsSide]) -> tuple[WordsSide, list[int]]:
        """Return several uses as one, and the order in which they lie in it.

        Two uses of a kind, such as an embedding that is looked up twice, must be alike.
        """
        order = sorted(range(len(parts)), key=lambda n: parts[n].dense is None)
        dense = [part.dense for part in parts if part.dense is not None]
        ids = [part.ids for part in parts if part.ids is not None]
        if len(dense) > 1:
            dense = [Formed(torch.cat([one.piece(0, one.shape[2]) for one in dense], 1))]
        together = torch.cat(ids, 1) if ids else None
        made = cls(parts[0].size, dense[0] if dense else None, together)
        return made, order

    @property
    def shape(self) -> torch.Size:
        """(B, T, V)"""
        first = 0 if self.dense is None else self.dense.shape[1]
        second = 0 if self.ids is None else self.ids.shape[1]
        one = self.dense if self.dense is not None else self.ids
        assert one is not None
        return torch.Size((one.shape[0], first + second, self.size))

    def pick(self, rows: slice) -> WordsSide:
        """Return some of the B rows."""
        dense = None if self.dense is None else self.dense.pick(rows)
        return replace(self, dense=dense, ids=None if self.ids is None else self.ids[rows])

    def joined(self, x: torch.Tensor) -> tuple[torch.Tensor, WordsSide]:
        """See `WideSide.joined`."""
        first = 0 if self.dense is None else self.dense.shape[1]
        dense = None if self.dense is None else self.dense.joined()
        ids = None if self.ids is None else self.ids.flatten()[None]
        parts = x[:, :first].flatten(0, 1), x[:, first:].flatten(0, 1)
        return torch.cat(parts)[None], replace(self, dense=dense, ids=ids)

    def kept(self) -> WordsSide:
        """Return the same with its numbers formed once, if they are not too many."""
        if not isinstance(self.dense, Softmax) or self.dense.shape.numel() > _KEPT:
            return self
        return replace(self, dense=Formed(self.dense.piece(0, self.size)))

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the numbers of all words, piece by piece: where, and (B, T, n) float32."""
        for first in range(0, self.size, PIECE):
            last = min(self.size, first + PIECE)
            parts = [] if self.dense is None else [self.dense.piece(first, last)]
            if self.ids is not None:
                words = torch.arange(first, last, device=self.ids.device)
                parts.append((self.ids[..., None] == words).float())
            yield slice(first, last), torch.cat(parts, 1)

    def gradients(self, x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `WideSide.gradients`; what is looked up is added row by row."""
        first = 0 if self.dense is None else self.dense.shape[1]
        for start in range(0, self.size, PIECE):
            where = slice(start, min(self.size, start + PIECE))
            count = where.stop - where.start
            if self.dense is not None:
                made = self.dense.piece(where.start, where.stop).mT @ x[:, :first]
            else:
                made = x.new_zeros(len(x), count, x.shape[2])
            if self.ids is not None:
                here = (self.ids >= where.start) & (self.ids < where.stop)
                rows = x[:, first:] * here[..., None]
                places = (self.ids - start).clamp(0, count - 1)[..., None].expand(rows.shape)
                made.scatter_add_(1, places, rows)
            yield where, made

    def _of_output(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The numbers of the output layer's use alone, piece by piece."""
        if self.dense is not None:
            for first in range(0, self.size, PIECE):
                where = slice(first, min(self.size, first + PIECE))
                yield where, self.dense.piece(where.start, where.stop)

    def sketched(self, sketch: Sketch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a sketch of the last axis makes of it, (B, T, k), and d d^T, (B, T, T)."""
        parts: list[torch.Tensor] = []
        inner = None
        if self.dense is not None:
            batch, length, _ = self.dense.shape
            rows = torch.zeros(sketch.size, batch * length, device=self.device)
            inner = torch.zeros(batch, length, length, device=self.device)
            for where, values in self._of_output():
                rows += sketch.part(where.start, where.stop, values.flatten(0, 1).t())
                inner += values @ values.mT
            parts.append(rows.t().view(batch, length, sketch.size))
        if self.ids is not None:
            parts.append(sketch.of_ones(self.ids))
        return torch.cat(parts, 1), self._gram(inner)

    def gram(self) -> torch.Tensor:
        """See `WideSide.gram`."""
        if self.dense is None:
            return self._gram(None)
        batch, length, _ = self.dense.shape
        inner = torch.zeros(batch, length, length, device=self.device)
        for _, values in self._of_output():
            inner += values @ values.mT
        return self._gram(inner)

    def _gram(self, inner: torch.Tensor | None) -> torch.Tensor:
        if self.ids is None:
            assert inner is not None
            return inner
        ones = (self.ids[:, :, None] == self.ids[:, None]).float()
        if inner is None:
            return ones
        assert self.dense is not None
        across = self.dense.columns(self.ids)
        return torch.cat([torch.cat([inner, across], 2), torch.cat([across.mT, ones], 2)], 1)

    def along(self, matrix: torch.Tensor) -> torch.Tensor:
        """See `WideSide.along`."""
        parts = []
        if self.dense is not None:
            total = torch.zeros(*self.dense.shape[:2], matrix.shape[-1], device=self.device)
            for where, values in self._of_output():
                total += values @ matrix[..., where, :]
            parts.append(total)
        if self.ids is not None:
            parts.append(taken(matrix, self.ids))
        return torch.cat(parts, 1)

    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        """See `WideSide.combined`."""
        made = factors.new_zeros(len(factors), factors.shape[1], self.size)
        first = 0 if self.dense is None else self.dense.shape[1]
        for where, values in self._of_output():
            made[..., where] = factors[..., :first] @ values
        if self.ids is not None:
            places = self.ids[:, None].expand(-1, factors.shape[1], -1)
            made.scatter_add_(2, places, factors[..., first:])
        return made

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the numbers of words (B, S), each row's own: (B, T, S)."""
        parts = [] if self.dense is None else [self.dense.columns(ids)]
        if self.ids is not None:
            parts.append((self.ids[:, :, None] == ids[:, None]).float())
        return torch.cat(parts, 1)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        one = self.dense if self.dense is not None else self.ids
        assert one is not None
        return one.device
