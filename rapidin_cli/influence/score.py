"""Scores: what they mean, and streaming them over a cache with bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.rows import RowKind, RowLayout
from rapidin_storage import Snapshot

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """One way to compare a query's gradient q with an example's gradient g.

    All are sums over layers l of weighted inner products of the layers' directions, so a
    score is two sets of weights: a(q, l) on the query's side and b(g, l) on the row's.
    """

    name: str
    unit: str
    description: str

    def query_weights(self, norm: torch.Tensor) -> torch.Tensor:
        """Return a(q, l) from the query's layer norms (L,)."""
        match self.name:
            case "dot":
                return norm
            case "cosine":
                return norm.div(torch.linalg.vector_norm(norm).clamp_min(1e-30))
        return torch.ones_like(norm)

    def row_weights(self, norm: torch.Tensor) -> torch.Tensor | None:
        """Return b(g, l) from the rows' layer norms (n, L); None for all ones."""
        match self.name:
            case "dot":
                return norm
            case "cosine":
                return norm.div(
                    torch.linalg.vector_norm(norm, dim=1, keepdim=True).clamp_min(1e-30)
                )
        return None


SIGN = "positive: training on the example made the generation more likely; negative: less likely"
SCORES = {
    score.name: score
    for score in (
        Score(
            "rapidin",
            "sum over layers of the cosine of both gradients in that layer",
            "Every layer counts alike, whatever the size of its gradient (RapidIn, ACL 2024).",
        ),
        Score(
            "dot",
            "inner product of both gradients (nats per unit learning rate)",
            "The first-order change of the generation's log-probability by one SGD step on the "
            "example (TracIn); long and surprising examples score high.",
        ),
        Score(
            "cosine",
            "cosine of both whole gradients, between -1 and 1",
            "Direction only, dominated by the layers with the largest gradients.",
        ),
    )
}


def choose_score(name: str, layout: RowLayout) -> Score:
    """Return a score that the cached rows can answer.

    Raises:
        UsageError: an unknown name, or one that needs blocks per layer.
    """
    if name not in SCORES:
        raise UsageError(f"there is no score {name!r}", hint=f"choose one of {', '.join(SCORES)}")
    if name != "rapidin" and len(layout.blocks) != len(layout.layers):
        raise UsageError(
            f"rows of sketch = {layout.spec.sketch!r} mix all layers and answer only the score "
            f"rapidin, not {name}",
            hint="rin retrieve --score rapidin",
        )
    return SCORES[name]


@dataclass(frozen=True)
class Found:
    """What a scan keeps.

    Attributes:
        totals: (N,) float32 by slot; NaN where nothing was scored.
        slots: (m,) the kept slots.
        scores: (m, 1 + T): the total and each explained token's score of the kept slots.
    """

    totals: Array
    slots: Array
    scores: Array


def scan(
    snapshot: Snapshot,
    kind: RowKind,
    directions: torch.Tensor,
    score: Score,
    wanted: Array,
    top: int,
    token_top: int,
) -> Found:
    """Score all wanted rows, one chunk at a time.

    Kept are the union of the overall `top` of each sign and every token's own `token_top`
    of each sign: re-ranking inside the overall best would miss a token's true best.

    Args:
        directions: (1 + T, K): the query's weighted row, then one for each explained token.
        wanted: (N,) bool, the slots to score.
    """
    names = sorted(kind.arrays())
    totals = np.full(snapshot.commit.slots, np.nan, dtype=np.float32)
    kept_slots = np.empty(0, dtype=np.int64)
    kept_scores = np.empty((0, len(directions)), dtype=np.float32)
    for start, stop in snapshot.chunk_ranges():
        chosen = np.flatnonzero(wanted[start:stop])
        if not len(chosen):
            continue
        stored = {n: v[chosen] for n, v in snapshot.read(start, stop, names).items()}
        weights = score.row_weights(torch.from_numpy(stored["norm"]))
        scores = kind.products(stored, directions, weights).numpy()
        totals[start + chosen] = scores[:, 0]
        kept_slots = np.concatenate([kept_slots, start + chosen])
        kept_scores = np.concatenate([kept_scores, scores])
        best = _extremes(kept_scores, top, token_top)
        kept_slots, kept_scores = kept_slots[best], kept_scores[best]
    return Found(totals, kept_slots, kept_scores)


def _extremes(scores: Array, top: int, token_top: int) -> Array:
    """Return the rows that are among the highest or lowest of some column, ascending."""
    keep: set[int] = set()
    for column in range(scores.shape[1]):
        count = min(top if column == 0 else token_top, len(scores))
        if count:
            order = np.argsort(scores[:, column], kind="stable")
            keep.update(order[:count].tolist(), order[-count:].tolist())
    return np.array(sorted(keep), dtype=np.int64)
