"""From answers to a report: what was asked of which checkpoint, data and cache."""

import datetime
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rapidin_cli.data.examples import Dataset
from rapidin_cli.influence.lexical import MOST_TEXT
from rapidin_cli.influence.score import SCORES, SIGN
from rapidin_cli.influence.session import Answered
from rapidin_cli.models.learning_rates import UNKNOWN
from rapidin_cli.output.version import __version__
from rapidin_cli.report.view import make_report, query_view, short

# Norms and biases are a thousandth of a model, embeddings or fused experts most of a small one.
_TOLD = 0.02


def compose(
    answered: Answered, files: Sequence[str], command: str, asked: int = 0
) -> dict[str, Any]:
    """Return the report (`rin.report/1`) of what was answered.

    Args:
        files: of the data.
        command: what was typed.
        asked: how many questions there were, if it was interrupted.
    """
    last, dataset = answered.last, answered.dataset
    views = []
    for found in answered.answers:
        texts = [last.texts(part) for part, _ in found.query.parts]
        learnt = [last.learnt_texts(rows[0]) for rows in found.examples]
        views.append(query_view(found, texts, learnt, dataset.distinct))
    return make_report(
        provenance={**_provenance(command), **_pace(answered)},
        checkpoints=_checkpoints(answered),
        data={
            "files": list(files),
            "digest": dataset.digest,
            "rows": len(dataset.examples),
            "examples": len(dataset.by_digest),
        },
        score=_score(answered),
        warnings=[*_interrupted(answered, asked), *_warnings(answered)],
        layers=[layer.name for layer in last.layout.layers],
        queries=views,
        interrupted=answered.interrupted,
    )


def _checkpoints(asked: Answered) -> list[dict[str, Any]]:
    return [
        {
            "name": member.name,
            "weight": short(member.weight),
            "fingerprint": member.fingerprint,
            "cache": member.snapshot.commit.cache,
            "snapshot": member.snapshot.commit.number,
            "tree": member.snapshot.commit.tree,
        }
        for member in asked.members
    ]


def _score(asked: Answered) -> dict[str, Any]:
    score = SCORES[asked.options.score]
    damping = asked.options.damping or score.damping
    return {
        "name": score.name,
        "unit": score.unit,
        "sign": SIGN,
        "description": score.description,
        "damping": damping if score.curvature else None,
        "row": asked.last.layout.describe(),
    }


def _interrupted(answered: Answered, asked: int) -> Iterator[str]:
    if not answered.interrupted:
        return
    yield "interrupted: this is what was known by then"
    if left := asked - len(answered.answers):
        yield f"{left:,} of {asked:,} questions were not answered"


def _warnings(asked: Answered) -> Iterator[str]:
    """What limits the answers."""
    yield from _of_data(asked.last.missing, asked.dataset, asked.members[-1].name)
    share, reason = asked.last.left_out
    if share >= _TOLD:
        yield (
            f"{share:.0%} of the trained parameters could not be captured (mostly: {reason}), so "
            "their influence is missing"
        )
    if not asked.words_compared:
        yield (
            f"shared words (BM25) were not compared: the data has more than "
            f"{MOST_TEXT >> 20:,} MB of text"
        )
    if len(asked.members) > 1 and UNKNOWN in asked.weights_source:
        yield f"{asked.weights_source}: set learning_rate in [[checkpoints]] of rin.toml"
    if any(a.exact is not None and not a.exact.forward_mode for a in asked.answers):
        yield (
            "an operator of the model has no forward-mode derivative, so each token was scored "
            "by its own backward pass, which is slower"
        )


def _of_data(missing: int, dataset: Dataset, name: str) -> Iterator[str]:
    if missing:
        yield (
            f"{missing:,} of {len(dataset.by_digest):,} examples are not cached and were not "
            f"scored: rin cache {name}"
        )
    if bad := dataset.unusable:
        yield f"{len(bad):,} unusable rows were skipped; the first is {bad[0]}"


def _pace(answered: Answered) -> dict[str, float]:
    """How long an exact score took: no part of the result, which is the same on any machine."""
    found = [a.exact.example_seconds for a in answered.answers if a.exact is not None]
    return {"example_seconds": short(sum(found) / len(found))} if found else {}


def _provenance(command: str) -> dict[str, str]:
    import transformers  # here, where a model has long been loaded, in its own way

    return {
        "rin": __version__,
        "torch": f"{torch.__version__} (Python {platform.python_version()})",
        "transformers": str(transformers.__version__),
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
