"""Which examples the cached rows could have missed.

A compressed gradient errs in proportion to its own size: the variance of a TensorSketch's inner
product with a query q is bounded by a constant times |q|^2 |g|^2 / k (Pham & Pagh 2013), so its
error is taken as c |g| with one c for all examples; signs also scale all products alike. Both
numbers are measured on the examples that have been scored both ways. That shows which of the
others may still belong to the best; the shortlist grows by them until none is left, or there is
no room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from rapidin_cli.influence.exact import ExactScores
from rapidin_cli.influence.ranking import Ranked
from rapidin_cli.influence.score import Array

ERRORS = 3.5
"""An example that is this many errors away from the best is left out.

On SmolLM2 (tests/benchmarks/fidelity.py) 2.5 left 3 of 180 exact top lists of sketch rows
incomplete, 3.5 none, at up to 28% more exact scores."""

GROWTH = 4
"""At most this many times the first shortlist's `top` of each sign are scored exactly."""


def fit(found: Ranked, slots: Array, exact: Array) -> float:
    """Return the factor of sketched totals that fits the exact ones best; 1 if none does.

    Least squares over the shortlist, with errors in proportion to sizes. A shortlist is chosen
    by its sketched totals, and that leaves the slope of exact on sketched ones as it is.

    Args: see `doubtful`.
    """
    sketched, true = _by_size(found, slots, found.totals[slots], exact)
    factor = float(sketched @ true / max(float(sketched @ sketched), 1e-30))
    return factor if factor > 0 else 1.0


def doubtful(found: Ranked, slots: Array, exact: Array, top: int) -> Array:
    """Return which examples may be among the `top` exact totals of either sign, likeliest first.

    Args:
        found: sketched totals and sizes of all examples.
        slots: (m,) the examples that have been scored exactly.
        exact: (m,) their exact totals.
    """
    found = found.times(fit(found, slots, exact))
    count = min(top, len(exact))
    outside = ~np.isnan(found.totals)
    outside[slots] = False
    others = np.flatnonzero(outside)
    if not count or not len(others):
        return others[:0]
    totals, sizes = found.totals[others].astype(np.float64), found.sizes[others]
    sketched, true = _by_size(found, slots, found.totals[slots], exact)
    error = np.sqrt(np.mean((sketched - true) ** 2)) if len(true) else 0.0
    reach = ERRORS * error * sizes.astype(np.float64)
    ranked = np.sort(exact)
    excess = np.maximum(totals - ranked[-count], ranked[count - 1] - totals) + reach
    chosen = np.flatnonzero(excess > 0)
    likeliest = np.argsort(-excess[chosen] / (reach[chosen] + 1e-30), kind="stable")
    return others[chosen[likeliest]]


def _by_size(found: Ranked, slots: Array, *scores: Array) -> list[Array]:
    """Divide scores by their gradients' sizes, leaving out gradients that are zero."""
    sizes = found.sizes[slots].astype(np.float64)
    return [part[sizes > 0] / sizes[sizes > 0] for part in scores]


@dataclass
class Shortlist:
    """Examples that have been scored exactly.

    Attributes:
        slots: (m,) their places.
        scores: (m, 1 + T): total and each explained token's; NaN where not known.
        layers: (m, L) each layer's part of the total; (m, 0) if checkpoints differ in layers.
        factors: for each checkpoint, their own divisors inverted, (m, L).
        forward_mode: whether forward mode was used.
    """

    slots: Array
    scores: Array
    layers: Array
    factors: list[torch.Tensor] = field(default_factory=list)
    forward_mode: bool = True

    @classmethod
    def unscored(cls, slots: Array, width: int) -> Shortlist:
        """Unscored examples, with 1 + T columns."""
        none = np.zeros((len(slots), 0), np.float32)
        return cls(slots, np.zeros((len(slots), width), np.float32), none)

    def add(self, weight: float, exact: ExactScores, forward_mode: bool) -> None:
        """Add the scores of a checkpoint."""
        self.scores += weight * exact.table[:, : self.scores.shape[1]]
        layers = weight * exact.layers.numpy()
        if not self.factors:
            self.layers = layers
        elif layers.shape == self.layers.shape:
            self.layers = self.layers + layers
        else:
            self.layers = layers[:, :0]
        self.factors.append(exact.factors)
        self.forward_mode &= forward_mode

    def extended(self, more: Shortlist) -> Shortlist:
        """Return both, in the order of their places."""
        slots = np.concatenate([self.slots, more.slots])
        order = np.argsort(slots, kind="stable")
        pairs = zip(self.factors or [part[:0] for part in more.factors], more.factors, strict=True)
        factors = [torch.cat(pair)[order] for pair in pairs]
        scores = np.concatenate([self.scores, more.scores])[order]
        before = self.layers if len(self.slots) else more.layers[:0]
        layers = np.concatenate([before, more.layers])[order]
        forward_mode = self.forward_mode and more.forward_mode
        return Shortlist(slots[order], scores, layers, factors, forward_mode)
