"""Scores: what they mean, and what is kept of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.rows import RowLayout
from rapidin_cli.gradients.scaling import reciprocal

Array = np.ndarray[Any, Any]


Normalisation = Literal["layer", "whole", "none"]
Curvature = Literal["", "gram", "ekfac", "adam"]


@dataclass(frozen=True)
class Score:
    """One way to compare a query's gradient q with an example's gradient g.

    All are sums over layers l of a(q, l) b(g, l) <P_l q_l, g_l>: a and b divide by norms, and
    P_l is the unit matrix or an inverse curvature.

    Attributes:
        normalise: `layer` divides by the norm of each layer's gradient, `whole` by that of the
            whole gradient.
        damping: added to the curvature where the question does not say, as a share of its
            mean eigenvalue in each layer (tests/benchmarks/faithfulness.py).
        curvature: what P_l inverts: `gram`, the second moments of the cached sketches;
            `ekfac`, the Kronecker-factored ones that `rin curvature` has collected; `adam`,
            the roots of the optimizer's, one for each weight.
    """

    name: str
    normalise: Normalisation
    curvature: Curvature
    unit: str
    description: str
    damping: float = 0.0

    def divisors(self, norm: torch.Tensor) -> torch.Tensor:
        """Return what layers are divided by, 1 / a or 1 / b, from their norms (..., L)."""
        match self.normalise:
            case "layer":
                return norm
            case "whole":
                whole: torch.Tensor = torch.linalg.vector_norm(norm, dim=-1, keepdim=True)
                return whole.expand_as(norm)
        return torch.ones_like(norm)

    def row_weights(self, norm: torch.Tensor) -> torch.Tensor | None:
        """Return the weights of stored rows, whose layers have norm 1; None for all ones."""
        if self.normalise == "layer":
            return None
        return norm * reciprocal(self.divisors(norm))

    def row_sizes(self, norm: torch.Tensor) -> torch.Tensor:
        """Return the norms of the gradients that rows stand for, divided as they are scored.

        From the norms (n, L) of their layers; (n,).
        """
        weights = self.row_weights(norm)
        each = (norm > 0).float() if weights is None else weights
        sizes: torch.Tensor = torch.linalg.vector_norm(each, dim=1)
        return sizes


AUTO = "auto"
"""The best score that can be had."""

SIGN = "positive: training on the example made the generation more likely; negative: less likely"
SCORES = {
    score.name: score
    for score in (
        Score(
            "rapidin",
            "layer",
            "",
            "sum over layers of the cosine of both gradients in that layer",
            "Every layer counts alike, whatever the size of its gradient (RapidIn, ACL 2024).",
        ),
        Score(
            "dot",
            "none",
            "",
            "inner product of both gradients (nats per unit learning rate)",
            "The first-order change of the generation's log-probability by one SGD step on the "
            "example (TracIn); long and surprising examples score high.",
        ),
        Score(
            "cosine",
            "whole",
            "",
            "cosine of both whole gradients, between -1 and 1",
            "Direction only, dominated by the layers with the largest gradients.",
        ),
        Score(
            "gram",
            "none",
            "gram",
            "inner product through the inverse second moments of the cached gradients",
            "Directions that many examples share count less (TRAK, TrackStar); the second "
            "moments are those of the cached sketches, layer by layer.",
            damping=1.0,
        ),
        Score(
            "ekfac",
            "none",
            "ekfac",
            "inner product through the inverse EK-FAC curvature (influence function)",
            "What up-weighting the example would do to the generation's log-probability near the "
            "optimum (Grosse et al. 2023, arXiv 2308.03296).",
            damping=1.0,
        ),
        Score(
            "adam",
            "none",
            "adam",
            "inner product along the optimizer's step (nats per unit learning rate)",
            "The first-order change of the generation's log-probability by one step of Adam on the "
            "example, with the second moments of the checkpoint's optimizer.pt (LESS, Xia et al. "
            "2024).",
            damping=0.01,
        ),
    )
}


def check_score(name: str, damping: float | None) -> None:
    """Refuse what no rows can answer.

    Raises:
        UsageError: an unknown name, or a damping for a score that inverts no curvature.
    """
    if name not in (AUTO, *SCORES):
        raise UsageError(
            f"there is no score {name!r}", hint=f"choose one of {', '.join((AUTO, *SCORES))}"
        )
    if damping is None:
        return
    if not math.isfinite(damping):
        raise UsageError(f"--damping {damping} is no number", hint="rin retrieve --damping 0.1")
    if name != AUTO and not SCORES[name].curvature:
        damped = ", ".join(score.name for score in SCORES.values() if score.curvature)
        raise UsageError(
            f"the score {name} has no damping",
            hint=f"leave --damping out, or choose a --score that has one: {damped}",
        )


def choose_score(name: str, layout: RowLayout, damping: float | None = None) -> Score:
    """Return a score that the cached rows can answer.

    Raises:
        UsageError: see `check_score`; or one that these rows cannot answer.
    """
    check_score(name, damping)
    if name != "rapidin" and not layout.per_layer:
        raise UsageError(
            f"rows of sketch = {layout.spec.sketch!r} mix all layers and answer only the score "
            f"rapidin, not {name}",
            hint="rin retrieve --score rapidin",
        )
    if SCORES[name].curvature == "gram" and layout.spec.row != "sketch":
        raise UsageError(
            "the score gram takes second moments of sketch rows, and these are factor rows",
            hint="rin retrieve --score ekfac",
        )
    return SCORES[name]


@dataclass(frozen=True)
class Found:
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
    def nothing(cls, count: int, width: int) -> Found:
        """N unscored slots, none of them kept."""
        unscored = np.full(count, np.nan, np.float32)
        empty = np.empty(0, np.int64), np.empty((0, width), np.float32)
        return cls(unscored, np.zeros(count, np.float32), *empty)

    def joined(self, places: Array, other: Found, top: int, token_top: int) -> Found:
        """Keep the best of both; write the other's totals and sizes to their places here."""
        self.totals[places], self.sizes[places] = other.totals, other.sizes
        slots = np.concatenate([self.slots, other.slots])
        scores = np.concatenate([self.scores, other.scores])
        return Found(self.totals, self.sizes, slots, scores).best(top, token_top)

    def best(self, top: int, token_top: int) -> Found:
        """Keep only the union of the overall best and of each token's."""
        return self.only(extremes(self.scores, top, token_top))

    def only(self, chosen: Array) -> Found:
        """Keep only some of what is kept."""
        return Found(self.totals, self.sizes, self.slots[chosen], self.scores[chosen])

    def replaced(self, slots: Array, scores: Array) -> Found:
        """Keep others, with better scores."""
        totals = self.totals.copy()
        totals[slots] = scores[:, 0]
        return Found(totals, self.sizes, slots, scores)

    def plus(self, other: Found) -> Found:
        """Add the scores of another checkpoint; what only one of them has scored is dropped."""
        mine, theirs = np.isin(self.slots, other.slots), np.isin(other.slots, self.slots)
        return Found(
            self.totals + other.totals,
            np.hypot(self.sizes, other.sizes),
            self.slots[mine],
            self.scores[mine] + other.scores[theirs],
        )

    def times(self, weight: float) -> Found:
        """Multiply all scores, and sizes, by a positive number."""
        return Found(self.totals * weight, self.sizes * weight, self.slots, self.scores * weight)


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
