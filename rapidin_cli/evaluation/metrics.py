"""How good a ranking is: LDS, precision, areas under curves, and their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BOOTSTRAPS = 2000


def ranks(values: Array) -> Array:
    """Ranks from 0 along the first axis; equal values share their mean rank."""
    columns = values.reshape(len(values), -1)
    found = np.empty(columns.shape)
    for number, column in enumerate(columns.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        found[:, number] = (ends - (counts + 1) / 2)[inverse]
    return found.reshape(values.shape)


def spearman(left: Array, right: Array) -> Array:
    """Rank correlation of each pair of columns, (n, Q) and (n, Q) -> (Q,); 0 for a constant."""
    a, b = ranks(left), ranks(right)
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.where(size > 0, (a * b).sum(0) / np.where(size > 0, size, 1), 0.0)


def lds(scores: Array, members: Array, losses: Array) -> Array:
    """Linear datamodeling score of each query (Park et al. 2023, arXiv 2303.14186), (Q,).

    The rank correlation, over subsets, of the summed scores of a subset's rows with the
    query's log-probability after training on them.

    Args:
        scores: (N, Q) influence of each row on each query.
        members: (M, N) which rows are in which subset.
        losses: (M, Q) each query's loss after training on the subset.
    """
    return spearman(members.astype(float) @ scores, -losses)


def precision_at(scores: Array, planted: Array, count: int) -> float:
    """Share of planted rows among the `count` highest scores."""
    best = np.argsort(-scores, kind="stable")[:count]
    return float(planted[best].mean()) if len(best) else 0.0


def average_precision(scores: Array, planted: Array) -> float:
    """Area under the precision-recall curve: the mean precision at each planted row."""
    hits = planted[np.argsort(-scores, kind="stable")]
    if not hits.any():
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def auroc(scores: Array, planted: Array) -> float:
    """Chance that a planted row scores higher than another; ties count half."""
    positive = int(planted.sum())
    negative = len(planted) - positive
    if not positive or not negative:
        return 0.5
    total = float((ranks(scores)[planted] + 1).sum())
    return (total - positive * (positive + 1) / 2) / (positive * negative)


def interval(values: Sequence[float] | Array, seed: int = 0) -> tuple[float, float, float]:
    """Mean over queries with its 95% bootstrap interval: (mean, low, high)."""
    sample = np.asarray(values, dtype=float)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(sample), (_BOOTSTRAPS, len(sample)))
    low, high = np.quantile(sample[drawn].mean(1), [0.025, 0.975])
    return float(sample.mean()), float(low), float(high)
