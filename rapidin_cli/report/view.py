"""The view model `rin.report/1`: what every report shows and `--json` prints (schema.json)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidin_cli.data.examples import Example
from rapidin_cli.errors import InputError
from rapidin_storage import canonical_json

if TYPE_CHECKING:
    from rapidin_cli.influence.queries import Query, QueryGradient
    from rapidin_cli.influence.refine import Refined

SCHEMA = "rin.report/1"
_HISTOGRAM_BINS = 48

View = dict[str, Any]


def query_view(
    query: Query,
    texts: Sequence[Sequence[str]],
    gradient: QueryGradient,
    refined: Refined,
    examples: Sequence[Sequence[Example]],
    learnt: Sequence[Sequence[str]],
    *,
    token_scores: bool,
) -> View:
    """Return one query of the report.

    Args:
        texts: of each part of the query, the text of each token.
        examples: for each kept slot, the rows of the data that it stands for.
        learnt: for each kept slot, the text of each learnt token.

    Raises:
        InputError: a score is NaN or infinite.
    """
    found = refined.found
    scored = found.totals[~np.isnan(found.totals)]
    if not np.isfinite(found.scores).all() or not np.isfinite(gradient.loss):
        raise InputError(
            f"query {query.id!r}: the model gives a loss or a gradient that is not finite",
            hint='try [model] dtype = "float32" in rin.toml',
        )
    ranked = np.sort(scored)
    kept = [
        _example_view(number, rows, learnt[number], refined, ranked, token_scores=token_scores)
        for number, rows in enumerate(examples)
    ]
    kept.sort(key=lambda item: (-item["score"], item["digest"]))
    residual = found.scores[:, 0] - found.scores[:, 1:].sum(1)
    contrast = None if query.contrast is None else query.contrast.row.response
    return {
        "id": query.id,
        "prompt": query.example.row.prompt,
        "response": query.example.row.response,
        "contrast": contrast,
        "source": query.source,
        "tokens": _tokens(query, texts, gradient),
        "loss": short(gradient.loss),
        "scored": len(scored),
        "exact": _exact_view(refined),
        "residual": short(np.abs(residual).max(initial=0)) if token_scores else None,
        "distribution": _distribution(scored),
        "examples": kept,
    }


def _exact_view(refined: Refined) -> View | None:
    if refined.training is None:
        return None
    totals = refined.found.scores[:, 0]
    apart = [
        abs(float(total) - float(part.sum(dtype=np.float64)))
        for total, part in zip(totals, refined.training, strict=True)
    ]
    return {
        "shortlist": refined.shortlist,
        "sketch_error": short(refined.sketch_error),
        "residual": short(max(apart, default=0)),
        "forward_mode": refined.forward_mode,
    }


def _example_view(
    number: int,
    rows: Sequence[Example],
    learnt: Sequence[str],
    refined: Refined,
    ranked: Any,
    *,
    token_scores: bool,
) -> View:
    first, scores = rows[0], refined.found.scores[number]
    not_above = np.searchsorted(ranked, scores[0], side="right")
    training = None
    if refined.training is not None:
        parts = zip(learnt, refined.training[number], strict=True)
        training = [[text, short(value)] for text, value in parts]
    return {
        "digest": first.digest.hex(),
        "id": first.row.id,
        "rows": [{"file": e.row.file, "line": e.row.line, "id": e.row.id} for e in rows],
        "prompt": first.row.prompt,
        "response": first.row.response,
        "score": short(scores[0]),
        "sketched": None if refined.sketched is None else short(refined.sketched[number, 0]),
        "percentile": short(100 * not_above / len(ranked)),
        "tokens": [short(value) for value in scores[1:]] if token_scores else None,
        "training": training,
    }


def _tokens(query: Query, texts: Sequence[Sequence[str]], gradient: QueryGradient) -> list[View]:
    """The tokens of the response with its prompt, and then those that a contrast explains."""
    shown = []
    for number, (example, _) in enumerate(query.parts):
        remaining = iter(gradient.losses[number])
        for token, text, known in zip(
            example.input_ids, texts[number], example.learnt_mask, strict=True
        ):
            if number and not known:
                continue
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
        return {"min": 0, "max": 0, "mean": 0, "std": 0, "edges": [], "counts": []}
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
    }


def short(value: Any) -> float:
    """Return a number with the digits that float32 has: half the bytes of a report."""
    return float(str(np.float32(value)))


def make_report(
    provenance: Mapping[str, str],
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    score: Mapping[str, str],
    warnings: Sequence[str],
    queries: Sequence[View],
) -> View:
    """Put a report together; its id is a hash of all but the provenance."""
    body: View = {
        "schema": SCHEMA,
        "checkpoint": dict(checkpoint),
        "data": dict(data),
        "score": dict(score),
        "warnings": list(warnings),
        "queries": list(queries),
    }
    identity = hashlib.sha256(canonical_json(body)).hexdigest()[:12]
    return {**body, "id": identity, "provenance": dict(provenance)}


def dump(report: Mapping[str, Any]) -> str:
    """Return the report as one JSON text, ASCII, without NaN."""
    return json.dumps(report, allow_nan=False, indent=1)
