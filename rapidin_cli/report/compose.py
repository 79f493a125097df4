"""From answers to a report: what was asked of which checkpoint, data and cache."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers

from rapidin_cli import __version__
from rapidin_cli.config import CheckpointSettings
from rapidin_cli.data.examples import Dataset
from rapidin_cli.influence.asking import Answer, Asking, Panel, Progress
from rapidin_cli.influence.lexical import MOST_TEXT, Lexical
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


# Norms and biases are a thousandth of a model, embeddings or fused experts most of a small one.
_TOLD = 0.02


class Session:
    """Checkpoints that are loaded once and asked any number of times.

    Args:
        project: whose.
        chosen: the checkpoints, whose scores are added; the last one stays in memory.
        device: `auto`, `cpu` or `cuda:N`.
        hold: where its cached rows stay after the first question: `disk`, `cpu` or `gpu`.
        executor: who scans them, `local` or `ray`.

    Raises:
        MissingError: a checkpoint has no cached rows.
    """

    def __init__(
        self,
        project: Project,
        chosen: Sequence[CheckpointSettings],
        device: str,
        hold: str,
        executor: str,
    ) -> None:
        self._project = project
        self._chosen = chosen
        self._opened = [project.opened(settings.name) for settings in chosen]
        folders = [one.checkpoint.path for one in self._opened]
        self._weights, self._source = checkpoint_weights(chosen, folders)
        self._snapshots = [project.snapshot(one) for one in self._opened]

        def opener(one: Opened, snapshot: Snapshot) -> Callable[[], Retriever]:
            return lambda: project.retriever(
                device=device, snapshot=snapshot, opened=one, hold=hold, executor=executor
            )[0]

        openers = [opener(*pair) for pair in zip(self._opened, self._snapshots, strict=True)]
        self._panel = Panel(openers, self._weights)

    @cached_property
    def _lexical(self) -> Lexical | None:
        return Lexical.of(self._opened[-1].dataset)

    def retrieve(
        self,
        questions: Sequence[Question],
        options: Options | None = None,
        *,
        command: str = "",
        progress: Progress = lambda *_: None,
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`).

        Raises:
            MissingError: a checkpoint lacks the curvature for the score.
            UsageError: the rows cannot answer the score.
        """
        from rapidin_cli.influence.retrieve import Options

        project = self._project
        options = options or Options(batch_tokens=project.config.cache.batch_tokens)
        options = replace(options, score=resolve_score(project, self._opened, options.score))
        dataset = self._opened[-1].dataset
        asking = Asking(self._panel, dataset, self._lexical, options, progress)
        report = self._report(asking.answers(questions), options, command)
        project.results.save(report)
        return report

    def _report(self, answers: Sequence[Answer], options: Options, command: str) -> dict[str, Any]:
        last = self._panel.at(-1)
        dataset = self._opened[-1].dataset
        views = []
        for found in answers:
            texts = [last.texts(part) for part, _ in found.query.parts]
            learnt = [last.learnt_texts(rows[0]) for rows in found.examples]
            views.append(query_view(found, texts, learnt, dataset.distinct))
        score = SCORES[options.score]
        warnings = _warnings(last.missing, dataset, self._opened[-1].checkpoint.name)
        share, reason = last.left_out
        if share >= _TOLD:
            warnings.append(
                f"{share:.0%} of the trained parameters could not be captured, most of them being "
                f"{reason}: their part of the influence is missing"
            )
        if self._lexical is None:
            warnings.append(
                f"shared words (BM25) were not compared: the data has more than "
                f"{MOST_TEXT >> 20:,} MB of text"
            )
        if len(self._chosen) > 1 and self._source.startswith("equal"):
            warnings.append(f"{self._source}: set learning_rate in [[checkpoints]] of rin.toml")
        if any(found.exact is not None and not found.exact.forward_mode for found in answers):
            warnings.append(
                "the model has an operator without forward-mode derivative: tokens were scored "
                "by one backward pass each, which is slower"
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
            for one, weight, snapshot in zip(
                self._opened, self._weights, self._snapshots, strict=True
            )
        ]
        return make_report(
            provenance=_provenance(command),
            checkpoints=members,
            data={
                "files": list(self._project.config.data.files),
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
            layers=[layer.name for layer in last.layout.layers],
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
