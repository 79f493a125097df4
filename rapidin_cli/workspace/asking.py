"""A session on the checkpoints of a project."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rapidin_cli.errors import UsageError
from rapidin_cli.influence.session import Member, Session
from rapidin_cli.models.learning_rates import checkpoint_weights
from rapidin_cli.work.devices import check_devices
from rapidin_cli.work.pools import RAY, check_executor
from rapidin_cli.workspace.config import CheckpointSettings
from rapidin_cli.workspace.workspace import Workspace


def open_session(
    project: Workspace,
    checkpoint: str,
    checkpoints: Sequence[str] | None,
    device: str,
    hold: str,
    executor: str,
) -> Session:
    """Return a session; see `Project.session`. Models are loaded when it is first asked."""
    _check_where(device, executor)
    chosen = _chosen(project, checkpoint, checkpoints)
    if executor == RAY:
        _check_cluster(hold, len(chosen))
    opened = [project.opened(settings.name) for settings in chosen]
    weights, source = checkpoint_weights(
        [settings.name for settings in chosen],
        [settings.learning_rate for settings in chosen],
        [one.checkpoint.path for one in opened],
    )
    members = []
    for one, weight in zip(opened, weights, strict=True):
        snapshot = one.snapshot()
        load = partial(one.load, device, snapshot=snapshot, hold=hold, executor=executor)
        members.append(Member(one.name, one.fingerprint, weight, snapshot, load, one.has_curvature))
    return Session(members, source, lambda: opened[-1].dataset, project.config.gradient)


def _chosen(
    project: Workspace, checkpoint: str, checkpoints: Sequence[str] | None
) -> list[CheckpointSettings]:
    if checkpoints is None:
        return project.checkpoint_settings([checkpoint] if checkpoint else [])[-1:]
    several = list(checkpoints)
    if twice := {name for name in several if several.count(name) > 1}:
        raise UsageError(
            f"checkpoint {sorted(twice)[0]!r} is named twice, and would count twice",
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
            f"--executor {RAY} scans the rows of one checkpoint where they are stored",
            hint="leave out --executor, or --hold and --checkpoints",
        )
    from rapidin_cli.work.ray_pool import connect

    connect()  # complains before a model is loaded
