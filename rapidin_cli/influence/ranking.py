"""What is kept of the scores of all rows: the totals, and the best with their token scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapidin_cli.gradients.layout import Array


@dataclass(frozen=True)
class Ranked:
    """What is kept of the scores of all rows.

    Attributes:
        totals: (N,) float32 by slot; NaN where nothing was scored.
        sizes: (N,) float32 by slot: of the scored gradients, see `Score.row_sizes`.
        slots: (m,) the kept slots.
        scores: (m, 1 + T): the total and each explained token's score of the kept slots.
    """

    totals: Array
    sizes: Array
    slots: Array
    scores: Array

    @classmethod
    def nothing(cls, count: int, width: int) -> Ranked:
        """N unscored slots, none of them kept."""
        unscored = np.full(count, np.nan, np.float32)
        empty = np.empty(0, np.int64), np.empty((0, width), np.float32)
        return cls(unscored, np.zeros(count, np.float32), *empty)

    def joined(self, places: Array, other: Ranked, top: int, token_top: int) -> Ranked:
        """Keep the best of both; write the other's totals and sizes to their places here."""
        self.totals[places], self.sizes[places] = other.totals, other.sizes
        slots = np.concatenate([self.slots, other.slots])
        scores = np.concatenate([self.scores, other.scores])
        return Ranked(self.totals, self.sizes, slots, scores).best(top, token_top)

    def best(self, top: int, token_top: int) -> Ranked:
        """Keep only the union of the overall best and of each token's."""
        return self.only(extremes(self.scores, top, token_top))

    def only(self, chosen: Array) -> Ranked:
        """Keep only some of what is kept."""
        return Ranked(self.totals, self.sizes, self.slots[chosen], self.scores[chosen])

    def replaced(self, slots: Array, scores: Array) -> Ranked:
        """Keep others, with better scores."""
        totals = self.totals.copy()
        totals[slots] = scores[:, 0]
        return Ranked(totals, self.sizes, slots, scores)

    def plus(self, other: Ranked) -> Ranked:
        """Add the scores of another checkpoint; what only one of them has scored is dropped."""
        mine, theirs = np.isin(self.slots, other.slots), np.isin(other.slots, self.slots)
        return Ranked(
            self.totals + other.totals,
            np.hypot(self.sizes, other.sizes),
            self.slots[mine],
            self.scores[mine] + other.scores[theirs],
        )

    def times(self, weight: float) -> Ranked:
        """Multiply all scores, and sizes, by a positive number."""
        return Ranked(self.totals * weight, self.sizes * weight, self.slots, self.scores * weight)


def extremes(scores: Array, top: int, token_top: int) -> Array:
    """Return the rows that are among the highest or lowest of some column, ascending."""
    keep = [np.empty(0, np.int64)]
    for columns, count in ((scores[:, :1], top), (scores[:, 1:], token_top)):
        count = min(count, len(scores))
        if not count or not columns.shape[1]:
            continue
        bounds = np.partition(columns, sorted({count - 1, len(scores) - count}), axis=0)
        low, high = bounds[count - 1], bounds[len(scores) - count]
        for column, least, most in zip(columns.T, low, high, strict=True):
            for near, last in ((column <= least, False), (column >= most, True)):
                places = np.flatnonzero(near)
                if len(places) > count:  # a tie: of the lowest the first, of the highest the last
                    order = np.argsort(column[places], kind="stable")
                    places = places[order[-count:] if last else order[:count]]
                keep.append(places)
    return np.unique(np.concatenate(keep))
