"""Questions to the checkpoints of a project, answered, reported and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import UsageError
from rapidin_cli.models.learning_rates import checkpoint_weights
from rapidin_cli.work.devices import check_devices
from rapidin_cli.work.pools import LOCAL, RAY, check_executor
from rapidin_cli.workspace.config import CheckpointSettings
from rapidin_cli.workspace.workspace import Workspace

if TYPE_CHECKING:
    from rapidin_cli.influence.forecast import Forecast
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.influence.session import Session as Asking
    from rapidin_cli.output.stages import StageProgress


def session(
    project: Workspace,
    checkpoint: str = "",
    *,
    checkpoints: Sequence[str] | None = None,
    device: str = "auto",
    hold: str = "disk",
    executor: str = LOCAL,
) -> Session:
    """Load checkpoints once, to ask them any number of times.

    Args:
        checkpoint: the checkpoint to ask; the last by default.
        checkpoints: several whose scores are added, weighted by their learning rates; an
            empty list means all.
        device: `auto`, `cpu` or `cuda:N`.
        hold: where cached rows stay after the first question: on `disk` they are read for each
            question; in `cpu` or `gpu` memory they are read once.
        executor: `local`, or `ray`: the cluster of RAY_ADDRESS, or one that is started
            here, scans the cached rows of a single checkpoint.

    Raises:
        UsageError: an executor or a device is not available; a checkpoint is named twice.
        MissingError: a checkpoint has no cached rows.
    """
    from rapidin_cli.influence.session import Member
    from rapidin_cli.influence.session import Session as Asking

    _check_where(device, executor)
    chosen = _chosen(project, checkpoint, checkpoints)
    if executor == RAY:
        _check_cluster(hold, len(chosen))
    opened = [project.opened(settings.name) for settings in chosen]
    weights, source = checkpoint_weights(
        [settings.name for settings in chosen],
        [settings.learning_rate for settings in chosen],
        [one.checkpoint.path for one in opened],
        [settings.start for settings in chosen],
    )
    members = []
    for one, weight in zip(opened, weights, strict=True):
        rows = one.snapshot()
        load = partial(one.load, device, snapshot=rows, hold=hold, executor=executor)
        members.append(Member(one.name, one.fingerprint, weight, rows, load, one.has_curvature))
    return Session(project, Asking(members, source, lambda: opened[-1].dataset))


def retrieve(
    project: Workspace,
    questions: Sequence[Question],
    options: Options | None = None,
    *,
    checkpoint: str = "",
    checkpoints: Sequence[str] | None = None,
    device: str = "auto",
    hold: str = "disk",
    executor: str = LOCAL,
    command: str = "",
    progress: StageProgress = lambda *_: None,
    ranked: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Answer questions and save the result; return the report (`rin.report/1`).

    Loads everything for these questions; see `session`, which has the same arguments, and
    `Session.retrieve`.

    Raises:
        UsageError: an unknown score, or a damping for one that has none.
    """
    from rapidin_cli.influence.score import check_score

    if options is not None:
        check_score(options.score, options.damping)
    asked = session(
        project, checkpoint, checkpoints=checkpoints, device=device, hold=hold, executor=executor
    )
    return asked.retrieve(questions, options, command=command, progress=progress, ranked=ranked)


class Session:
    """Loaded checkpoints of a project; `Project.session` makes it. For one thread."""

    def __init__(self, project: Workspace, asking: Asking) -> None:
        self._project = project
        self._asking = asking

    def retrieve(
        self,
        questions: Sequence[Question],
        options: Options | None = None,
        *,
        command: str = "",
        progress: StageProgress = lambda *_: None,
        ranked: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`).

        An interruption ends it with what is known by then: see `interrupted` of the report.

        Args:
            ranked: called with a report of what the cached rows say about a question, as soon as
                that is known; it is not saved.

        Raises:
            MissingError: a checkpoint lacks the curvature for the score.
            UsageError: the rows cannot answer the score.
        """
        from rapidin_cli.influence.options import Options
        from rapidin_cli.influence.session import Answered
        from rapidin_cli.report.compose import compose

        config = self._project.config

        first = None
        if ranked is not None:

            def first(answered: Answered) -> None:
                ranked(compose(answered, config.data.files, command))

        options = options or Options(batch_tokens=config.cache.batch_tokens)
        answered = self._asking.ask(questions, options, progress, first)
        report = compose(answered, config.data.files, command, asked=len(questions))
        self._project.results.save(report)
        return report

    def forecast(
        self, questions: Sequence[Question], options: Options | None = None
    ) -> list[Forecast]:
        """Return what the questions would take, each, of the last checkpoint; loads its model."""
        from rapidin_cli.influence.options import Options

        options = options or Options(batch_tokens=self._project.config.cache.batch_tokens)
        return self._asking.forecast(questions, options)


def _chosen(
    project: Workspace, checkpoint: str, checkpoints: Sequence[str] | None
) -> list[CheckpointSettings]:
    if checkpoints is None:
        return project.checkpoint_settings([checkpoint] if checkpoint else [])[-1:]
    several = list(checkpoints)
    if twice := {name for name in several if several.count(name) > 1}:
        raise UsageError(
            f"checkpoint {sorted(twice)[0]!r} is named twice, so it would count twice",
            hint=f"rin retrieve --checkpoints {','.join(dict.fromkeys(several))}",
        )
    return project.checkpoint_settings(several)


def _check_where(device: str, executor: str) -> None:
    check_executor(executor)
    if len(check_devices(device)) > 1:
        raise UsageError(
            f"questions are answered on one device, not on {device}",
            hint=f"rin retrieve --device {device.partition(',')[0]}",
        )


def _check_cluster(hold: str, count: int) -> None:
    if hold != "disk" or count > 1:
        raise UsageError(
            "--executor ray scans the rows of one checkpoint where they are stored",
            hint="omit --executor, or --hold and --checkpoints",
        )
    from rapidin_cli.work.ray_pool import connect

    connect()  # complains before a model is loaded
