"""The view model `rin.report/1`: what every report shows and `--json` prints (schema.json)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rapidin_cli.data.examples import Example
from rapidin_cli.errors import InputError
from rapidin_cli.influence.answering import Answer
from rapidin_cli.influence.queries import Query
from rapidin_storage import canonical_json

SCHEMA = "rin.report/1"
_HISTOGRAM_BINS = 48
_MATCHES = 10
_CELLS = 200
_LAYERS = 12
_CURVE = 48

View = dict[str, Any]


def query_view(
    answer: Answer,
    texts: Sequence[Sequence[str]],
    learnt: Sequence[Sequence[str]],
    all_examples: Sequence[Sequence[Example]],
) -> View:
    """Return one query of the report.

    Args:
        answer: what was found.
        texts: of each part of the query, the text of each token.
        learnt: for each kept example, the text of each learnt token.
        all_examples: the distinct examples of the data, as `answer.found` counts them.

    Raises:
        InputError: a score is NaN or infinite.
    """
    found, query, loss = answer.found, answer.query, sum(answer.losses[0])
    token_scores = found.scores.shape[1] > 1
    scored = found.totals[~np.isnan(found.totals)]
    if not np.isfinite(found.scores).all() or not np.isfinite(loss):
        raise InputError(
            f"query {query.id!r}: the model's loss or gradient is not finite",
            hint='try [model] dtype = "float32" in rin.toml',
        )
    ranked = np.sort(scored)
    ranks = _ranks(answer.words)
    kept = [
        _example_view(number, answer, learnt[number], ranked, ranks)
        for number in range(len(answer.examples))
    ]
    kept.sort(key=lambda item: (-item["score"], item["digest"]))
    residual = found.scores[:, 0] - found.scores[:, 1:].sum(1)
    if answer.exact is not None:  # an exact total is not the sum of sketched scores
        residual = residual[answer.exact.totals == answer.exact.tokens]
    contrast = None if query.contrast is None else query.contrast.row.response
    return {
        "id": query.id,
        "prompt": query.example.row.prompt,
        "response": query.example.row.response,
        "contrast": contrast,
        "source": query.source,
        "tokens": _tokens(query, texts, answer.losses),
        "loss": short(loss),
        "scored": len(scored),
        "exact": _exact_view(answer),
        "words": _words_view(answer, all_examples, ranked, ranks),
        "residual": short(np.abs(residual).max(initial=0)) if token_scores else None,
        "distribution": _distribution(scored),
        "examples": kept,
    }


def _exact_view(answer: Answer) -> View | None:
    exact = answer.exact
    if exact is None:
        return None
    totals = answer.found.scores[:, 0]
    apart = [
        abs(float(totals[number]) - float(part.sum(dtype=np.float64)))
        for number, part in exact.training.items()
    ]
    return {
        "shortlist": exact.shortlist,
        "doubtful": exact.doubtful,
        "sketch_error": short(exact.sketch_error),
        "residual": short(max(apart, default=0)),
        "forward_mode": exact.forward_mode,
    }


def _ranks(scores: Any) -> Any:
    """Rank of each score, 1 for the highest; 0 where nothing matches."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return np.where(scores > 0, ranks, 0)


def _words_view(
    answer: Answer, all_examples: Sequence[Sequence[Example]], ranked: Any, ranks: Any
) -> View:
    """How far shared words explain the ranking: both top lists, and what only one has."""
    totals = answer.found.totals
    matches = np.flatnonzero((ranks >= 1) & (ranks <= _MATCHES) & ~np.isnan(totals))
    order = np.argsort(-np.nan_to_num(totals, nan=-np.inf), kind="stable")[:_MATCHES]
    raised = [int(position) for position in order if totals[position] > 0]
    return {
        "of": len(raised) if len(matches) else 0,
        "agree": sum(bool(1 <= ranks[position] <= _MATCHES) for position in raised),
        "matches": [
            {
                "digest": all_examples[int(position)][0].digest.hex(),
                "id": all_examples[int(position)][0].row.id,
                "bm25": short(answer.words[position]),
                "score": short(totals[position]),
                "percentile": _percentile(totals[position], ranked),
            }
            for position in sorted(matches, key=lambda place: ranks[place])
        ],
    }


def _percentile(score: Any, ranked: Any) -> float:
    return short(100 * np.searchsorted(ranked, score, side="right") / len(ranked))


def _example_view(
    number: int, answer: Answer, learnt: Sequence[str], ranked: Any, ranks: Any
) -> View:
    rows, exact = answer.examples[number], answer.exact
    first, scores = rows[0], answer.found.scores[number]
    training = None
    if exact is not None and number in exact.training:
        parts = zip(learnt, exact.training[number], strict=True)
        training = [[text, short(value)] for text, value in parts]
    known = exact is not None and bool(exact.totals[number])
    place = answer.found.slots[number]
    return {
        "digest": first.digest.hex(),
        "id": first.row.id,
        "rows": [{"file": e.row.file, "line": e.row.line, "id": e.row.id} for e in rows],
        "prompt": first.row.prompt,
        "response": first.row.response,
        "score": short(scores[0]),
        "sketched": short(exact.sketched[number]) if exact is not None and known else None,
        "percentile": _percentile(scores[0], ranked),
        "bm25": {"score": short(answer.words[place]), "rank": int(ranks[place]) or None},
        "tokens": [short(value) for value in scores[1:]] if len(scores) > 1 else None,
        "tokens_exact": exact is not None and bool(exact.tokens[number]),
        "training": training,
        "cells": None if exact is None else _cells(exact.cells.get(number)),
        "layers": None if exact is None else _layers(exact.layers.get(number, ())),
    }


def _layers(parts: Any) -> View | None:
    """The layers with the largest parts of a total, and the sum of the rest; None if unknown."""
    if not len(parts):
        return None
    order = np.argsort(-np.abs(parts), kind="stable")[:_LAYERS]
    rest = parts.sum(dtype=np.float64) - parts[order].sum(dtype=np.float64)
    return {
        "strongest": [[int(layer), short(parts[layer])] for layer in order],
        "rest": short(rest),
    }


def _cells(pairs: Any) -> list[list[Any]] | None:
    """The strongest cells, [explained token, training token, score]; the rest adds little."""
    if pairs is None:
        return None
    order = np.argsort(-np.abs(pairs), axis=None, kind="stable")[:_CELLS]
    places = zip(*np.unravel_index(order, pairs.shape), strict=True)
    return [[int(t), int(s), short(pairs[t, s])] for t, s in places]


def _tokens(
    query: Query, texts: Sequence[Sequence[str]], losses: Sequence[Sequence[float]]
) -> list[View]:
    """The tokens of prompt and response, and then those of the contrast, with its prompt."""
    shown = []
    for number, (example, _) in enumerate(query.parts):
        remaining = iter(losses[number])
        for token, text, known in zip(
            example.input_ids, texts[number], example.learnt_mask, strict=True
        ):
            item = {
                "id": int(token),
                "text": text,
                "explained": bool(known),
                "contrast": number > 0,
                "logprob": short(-next(remaining)) if known else None,
            }
            shown.append(item)
    return shown


def _distribution(scores: Any) -> View:
    """Histogram of all scores, in bins that are linear within one deviation of zero."""
    if not len(scores):
        none: View = {"min": 0, "max": 0, "mean": 0, "std": 0}
        return {**none, "edges": [], "counts": [], "ranks": [], "shares": []}
    low, high, spread = float(scores.min()), float(scores.max()), float(scores.std())
    unit = spread or 1.0
    bent = np.linspace(np.arcsinh(low / unit), np.arcsinh(high / unit), _HISTOGRAM_BINS + 1)
    edges = np.sinh(bent) * unit
    edges[0], edges[-1] = low, high
    if not np.all(np.diff(edges) > 0):  # all scores alike
        edges = np.array([low - unit / 2, low + unit / 2])
    counts, _ = np.histogram(scores, bins=edges)
    return {
        "min": short(low),
        "max": short(high),
        "mean": short(scores.mean()),
        "std": short(spread),
        "edges": [short(edge) for edge in edges],
        "counts": counts.tolist(),
        **_concentration(scores),
    }


def _concentration(scores: Any) -> View:
    """Which share of the sum of |score| the strongest have, at ranks that grow by a factor."""
    sizes = np.sort(np.abs(scores.astype(np.float64)))[::-1]
    ranks = np.unique(np.geomspace(1, len(sizes), _CURVE).round().astype(np.int64))
    shares = np.cumsum(sizes)[ranks - 1] / max(float(sizes.sum()), 1e-300)
    return {"ranks": ranks.tolist(), "shares": [short(share) for share in shares]}


def short(value: Any) -> float:
    """Return a number with the digits that float32 has: half the bytes of a report."""
    return float(str(np.float32(value)))


def make_report(
    provenance: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    score: Mapping[str, Any],
    warnings: Sequence[str],
    layers: Sequence[str],
    queries: Sequence[View],
    *,
    interrupted: bool = False,
) -> View:
    """Put a report together; its id is a hash of all but the provenance."""
    body: View = {
        "schema": SCHEMA,
        "checkpoint": {k: v for k, v in checkpoints[-1].items() if k != "weight"},
        "checkpoints": [dict(checkpoint) for checkpoint in checkpoints],
        "data": dict(data),
        "score": dict(score),
        "warnings": list(warnings),
        "layers": list(layers),
        "queries": list(queries),
        "interrupted": interrupted,
    }
    identity = hashlib.sha256(canonical_json(body)).hexdigest()[:12]
    return {**body, "id": identity, "provenance": dict(provenance)}


def dump(report: Mapping[str, Any]) -> str:
    """Return the report as one JSON text, ASCII, without NaN."""
    return json.dumps(report, allow_nan=False, indent=1)
