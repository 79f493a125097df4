"""From answers to a report: what was asked of which checkpoint, data and cache."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import transformers

from rapidin_cli import __version__
from rapidin_cli.config import CheckpointSettings
from rapidin_cli.data.examples import Dataset
from rapidin_cli.influence.asking import Asking, Panel, Progress
from rapidin_cli.influence.score import AUTO, SCORES, SIGN
from rapidin_cli.lock import read_lock
from rapidin_cli.rates import checkpoint_weights
from rapidin_cli.report.view import make_report, query_view, short

if TYPE_CHECKING:
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.influence.retrieve import Options, Retriever
    from rapidin_cli.opened import Opened
    from rapidin_cli.project import Project
    from rapidin_storage import Snapshot


def answer(
    project: Project,
    chosen: Sequence[CheckpointSettings],
    questions: Sequence[Question],
    options: Options,
    device: str,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Ask one or more checkpoints; return the report (`rin.report/1`).

    Raises:
        MissingError: a checkpoint has no cached rows, or lacks the curvature for the score.
        UsageError: the rows cannot answer the score.
    """
    opened = [project.opened(settings.name) for settings in chosen]
    folders = [one.checkpoint.path for one in opened]
    weights, source = checkpoint_weights(chosen, folders)
    options = replace(options, score=resolve_score(project, opened, options.score))
    snapshots = [project.snapshot(one) for one in opened]

    def opener(one: Opened, snapshot: Snapshot) -> Callable[[], Retriever]:
        return lambda: project.retriever(device=device, snapshot=snapshot, opened=one)[0]

    openers = [opener(*pair) for pair in zip(opened, snapshots, strict=True)]
    panel = Panel(openers, weights)
    dataset = opened[-1].dataset
    asking = Asking(panel, dataset, options, progress)
    answers = asking.answers(questions)
    last = panel.at(-1)
    examples = list(dataset.by_digest.values())
    views = []
    for found in answers:
        texts = [last.texts(part) for part, _ in found.query.parts]
        learnt = [last.learnt_texts(rows[0]) for rows in found.examples]
        views.append(query_view(found, texts, learnt, examples))
    score = SCORES[options.score]
    warnings = _warnings(last.missing, dataset, opened[-1].checkpoint.name)
    if len(chosen) > 1 and source.startswith("equal"):
        warnings.append(f"{source}: set learning_rate in [[checkpoints]] of rin.toml")
    if any(found.exact is not None and not found.exact.forward_mode for found in answers):
        warnings.append(
            "the model has an operator without forward-mode derivative: tokens were scored by one "
            "backward pass each, which is slower"
        )
    members = [
        {
            "name": one.checkpoint.name,
            "weight": short(weight),
            "fingerprint": one.fingerprint,
            "cache": one.cache.id,
            "snapshot": snapshot.commit.number,
            "tree": snapshot.commit.tree,
        }
        for one, weight, snapshot in zip(opened, weights, snapshots, strict=True)
    ]
    return make_report(
        provenance=_provenance(command),
        checkpoints=members,
        data={
            "files": list(project.config.data.files),
            "digest": dataset.digest,
            "rows": len(dataset.examples),
            "examples": len(dataset.by_digest),
        },
        score={
            "name": score.name,
            "unit": score.unit,
            "sign": SIGN,
            "description": score.description,
            "damping": (options.damping or score.damping) if score.curvature else None,
            "row": last.layout.describe(),
        },
        warnings=warnings,
        queries=views,
    )


def resolve_score(project: Project, opened: Sequence[Opened], name: str) -> str:
    """Return the score that `auto` means: the best by the README's evidence that can be had.

    `ekfac` where curvature was collected; else `dot`, unless rows mix all layers. Never `adam`,
    better than `dot` as it is: its file lies on one machine only, is often twice as large as
    the model, and may be of an optimizer or of parameters that do not fit.
    """
    if name != AUTO:
        return name
    if all(_has_curvature(project, one) for one in opened):
        return "ekfac"
    spec = project.config.gradient
    return "rapidin" if spec.row == "sketch" and spec.sketch == "oporp" else "dot"


def _has_curvature(project: Project, opened: Opened) -> bool:
    """Whether it is here, or rin.lock names it: else no remote is asked for what it may have."""
    cache = opened.curvature_cache
    if cache.log.latest() is not None:
        return True
    entry = read_lock(project.root).get(opened.checkpoint.name)
    return entry is not None and entry.curvature == cache.id


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
