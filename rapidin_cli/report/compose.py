"""From answers to a report: what was asked of which checkpoint, data and cache."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from rapidin_cli import __version__
from rapidin_cli.config import Config
from rapidin_cli.data.examples import Dataset
from rapidin_cli.influence.score import SCORES, SIGN
from rapidin_cli.report.view import make_report

if TYPE_CHECKING:
    from rapidin_cli.influence.retrieve import Retriever
    from rapidin_cli.opened import Opened


def compose(
    config: Config,
    answers: Sequence[dict[str, Any]],
    score: str,
    retriever: Retriever,
    opened: Opened,
    command: str,
) -> dict[str, Any]:
    """Return the report (`rin.report/1`) of the answers to some queries."""
    dataset, snapshot = opened.dataset, retriever.snapshot
    return make_report(
        provenance=_provenance(command),
        checkpoint={
            "name": opened.checkpoint.name,
            "fingerprint": opened.fingerprint,
            "cache": opened.cache.id,
            "snapshot": snapshot.commit.number,
            "tree": snapshot.commit.tree,
        },
        data={
            "files": list(config.data.files),
            "digest": dataset.digest,
            "rows": len(dataset.examples),
            "examples": len(dataset.by_digest),
        },
        score={
            "name": score,
            "unit": SCORES[score].unit,
            "sign": SIGN,
            "description": SCORES[score].description,
            "row": retriever.layout.describe(),
        },
        warnings=_warnings(retriever.missing, dataset, opened.checkpoint.name),
        queries=answers,
    )


def _warnings(missing: int, dataset: Dataset, name: str) -> list[str]:
    warnings = []
    if missing:
        warnings.append(
            f"{missing:,} of {len(dataset.by_digest):,} examples are not cached and were not "
            f"scored: rin cache {name}"
        )
    if dataset.bad:
        warnings.append(f"{len(dataset.bad):,} unusable rows were left out; first {dataset.bad[0]}")
    return warnings


def _provenance(command: str) -> dict[str, str]:
    return {
        "rin": __version__,
        "torch": f"{torch.__version__} (Python {platform.python_version()})",
        "transformers": str(transformers.__version__),
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
