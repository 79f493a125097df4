"""Work on a project's checkpoints: fetch or compute rows, collect curvature, update rin.lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rapidin_cli.data.examples import Dataset
from rapidin_cli.errors import InputError, MissingError, RinError
from rapidin_cli.output.version import __version__
from rapidin_cli.work.caching import (
    WHOLE,
    CachingProgress,
    Part,
    Plan,
    Settings,
    cache_rows,
    make_plan,
)
from rapidin_cli.work.devices import check_devices
from rapidin_cli.work.pools import LOCAL, check_executor
from rapidin_cli.work.worker import Job
from rapidin_cli.workspace.lock import LockEntry, read_lock, write_lock
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint
from rapidin_cli.workspace.workspace import Workspace
from rapidin_storage import AccessError, Cache, CorruptError, NotFoundError, Snapshot, StorageError
from rapidin_storage.sync import synchronise

if TYPE_CHECKING:
    from rapidin_cli.gradients.stored_curvature import CollectedCurvature
    from rapidin_cli.output.stages import StageProgress
    from rapidin_cli.work.forecast import Forecast

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Cached:
    """What was done for one checkpoint: rows computed, and the newest snapshot."""

    checkpoint: str
    computed: int
    snapshot: Snapshot
    dataset: Dataset


def cache(
    project: Workspace,
    names: Sequence[str] = (),
    *,
    devices: str = "auto",
    workers: int | None = None,
    skip_bad: bool = False,
    part: Part = WHOLE,
    fetch: bool = True,
    executor: str = LOCAL,
    tell: Tell = lambda _: None,
    progress: Callable[[str], CachingProgress] = lambda _: CachingProgress(),
) -> list[Cached]:
    """Compute and commit the rows that are missing; return what was done.

    Rows that a remote has are fetched, not computed.

    Args:
        names: checkpoints; all by default.
        devices: `auto`, `cpu` or `cuda:0,cuda:1`.
        workers: processes, when the device is the CPU.
        skip_bad: skip unusable rows instead of stopping.
        part: this run's share of the rows, for job arrays.
        fetch: look for missing rows on the remotes first.
        executor: `local`, or `ray`: actors on the cluster of RAY_ADDRESS, as many as
            `workers`, or one on each of its GPUs.
        tell: called with a message about what remotes had.
        progress: makes a watcher for a checkpoint.

    Raises:
        UsageError: the executor is not available.
        RinError: bad data or settings; or a remote that may have rows cannot be reached.
        StorageError: the store cannot be read or written.
    """
    check_executor(executor, devices)
    done = []
    read_lock(project.root)  # a broken lock is better found now than at the end
    for opened in _each(project, names, skip_bad):
        watch = progress(opened.name)
        snapshot = opened.cache.snapshot()
        plan = _plan(opened, snapshot, part)
        if plan.batches and fetch and _fetch(project, opened, tell, watch):
            snapshot = opened.cache.snapshot()
            plan = _plan(opened, snapshot, part)
        if not plan.batches and snapshot is None:
            tell(f"{opened.name}: there are no rows to compute")
            continue
        if plan.batches or snapshot is None or not snapshot.has_group:
            # A cluster knows its own devices.
            jobs = opened.jobs(devices if executor == LOCAL else "cpu", workers)
            snapshot = _compute(project, opened, plan, jobs, watch, executor)
        _lock(project, opened, snapshot)
        done.append(Cached(opened.name, plan.rows, snapshot, opened.dataset))
    return done


def forecast(
    project: Workspace,
    names: Sequence[str] = (),
    *,
    devices: str = "auto",
    workers: int | None = None,
    skip_bad: bool = False,
    part: Part = WHOLE,
    progress: StageProgress = lambda *_: None,
) -> Iterator[Forecast]:
    """Yield what `cache`, with the same arguments, would take for each checkpoint.

    Loads each model that has rows to compute, and computes a few of them, which are not kept.

    Args:
        progress: called with (what is done, 0, 0).
    """
    from rapidin_cli.work.forecast import forecast as of_one

    for opened in _each(project, names, skip_bad):
        progress(f"{opened.name}: reading the data", 0, 0)
        plan = _plan(opened, opened.cache.snapshot(), part)
        if plan.rows:
            progress(f"{opened.name}: loading the model, computing a few rows", 0, 0)
        yield of_one(
            opened.name, plan, opened.jobs(devices, workers), _settings(opened).commit_seconds
        )


def curvature(
    project: Workspace,
    names: Sequence[str] = (),
    *,
    devices: str = "auto",
    workers: int | None = None,
    again: bool = False,
    skip_bad: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[tuple[str, CollectedCurvature, bool]]:
    """Collect the curvature of checkpoints; yield (name, curvature, whether it is new).

    Args:
        names, devices, workers, skip_bad: see `cache`.
        again: collect it again even if it exists.
        progress: called with (checkpoint and stage, done, all); a total of 0 is not known.
    """
    check_devices(devices)
    for opened in _each(project, names, skip_bad):
        jobs = opened.jobs(devices, workers)
        found, fresh = _curvature_of(opened, jobs, again, progress)
        entries = read_lock(project.root)
        if (entry := entries.get(opened.name)) is not None:
            entries[opened.name] = replace(entry, curvature=opened.curvature_cache.id)
            write_lock(project.root, entries)
        yield opened.name, found, fresh


def _curvature_of(
    opened: ProjectCheckpoint,
    jobs: Sequence[Job],
    again: bool,
    progress: StageProgress,
) -> tuple[CollectedCurvature, bool]:
    """Return a checkpoint's curvature, and whether it was newly collected."""
    from rapidin_cli.gradients import partial_curvature, stored_curvature
    from rapidin_cli.work.curvature import collect_curvature
    from rapidin_cli.work.worker import build_engine

    def told(what: str, done: int, total: int) -> None:
        progress(f"{opened.name}: {what}", done, total)

    snapshot = None if again else opened.newest_curvature()
    if snapshot is not None:
        told("loading the model", 0, 0)
        targets = build_engine(jobs[0]).passes.targets
        return stored_curvature.load(snapshot, targets), False
    told("reading the data", 0, 0)
    folder = opened.folder / ".rin" / "curvature" / opened.curvature_cache.id
    found = collect_curvature(
        jobs,
        opened.dataset,
        rows=opened.config.curvature.rows,
        sampled=opened.config.curvature.labels == "model",
        batch_tokens=_settings(opened).batch_tokens,
        folder=folder,
        progress=told,
    )
    told("storing", 0, 0)
    opened.stamped.check_unchanged()
    stored_curvature.store(opened.curvature_cache, found, opened.curvature_identity)
    partial_curvature.remove(folder)
    return found, True


def _each(project: Workspace, names: Sequence[str], skip_bad: bool) -> Iterator[ProjectCheckpoint]:
    """Open checkpoints; the model before training comes last, so that others can be asked."""
    for settings in sorted(project.checkpoint_settings(names), key=lambda each: each.start):
        yield project.opened(settings.name, skip_bad=skip_bad)


def _settings(opened: ProjectCheckpoint) -> Settings:
    return Settings(opened.config.cache.batch_tokens, opened.config.cache.commit_seconds)


def _plan(opened: ProjectCheckpoint, snapshot: Snapshot | None, part: Part) -> Plan:
    return make_plan(opened.dataset, snapshot, _settings(opened), part)


def _compute(
    project: Workspace,
    opened: ProjectCheckpoint,
    plan: Plan,
    jobs: Sequence[Job],
    progress: CachingProgress,
    executor: str,
) -> Snapshot:
    """Compute and commit rows. rin.lock must name even what an interrupted run committed."""
    about = {"rin": __version__, "checkpoint": opened.name}
    settings, identity = _settings(opened), opened.identity
    try:
        check = opened.stamped.check_unchanged
        return cache_rows(
            opened.cache, plan, jobs, settings, identity, about, progress, executor, check
        )
    except BaseException:
        with contextlib.suppress(StorageError, InputError, OSError):
            if (newest := opened.cache.snapshot()) is not None:
                _lock(project, opened, newest)
        raise


def _fetch(
    project: Workspace, opened: ProjectCheckpoint, tell: Tell, progress: CachingProgress
) -> bool:
    """Copy what remotes have of a cache into the store; return whether any had something."""
    fetched = False
    for name in project.config.remote:
        root = project.places.remote(name)
        if root.url == project.places.store.url:
            continue
        progress.fetching(name)
        try:
            done = synchronise(Cache(root, opened.cache.id), opened.cache)
        except StorageError as error:
            # Computing what it has would cost far more than the user's next command.
            damaged = isinstance(error, (CorruptError, NotFoundError))
            kind = InputError if isinstance(error, AccessError) else RinError
            mend = f"rin verify --repair --remote {name}" if damaged else "rin doctor"
            raise (MissingError if damaged else kind)(
                f"cannot fetch rows that remote {name} may have: {error}",
                hint=f"{mend}; or rin cache --no-pull to compute them here",
            ) from error
        if done.commits and done.snapshot is not None:
            fetched = True
            rows = done.snapshot.commit.rows
            tell(f"{opened.name}: fetched from {name}; {rows:,} rows are here now")
    return fetched


def _lock(project: Workspace, opened: ProjectCheckpoint, snapshot: Snapshot) -> None:
    # Other parts of a job array may have continued, and written the lock already.
    snapshot = opened.cache.snapshot() or snapshot
    entries = read_lock(project.root)
    entries[opened.name] = LockEntry(
        fingerprint=opened.fingerprint,
        cache=opened.cache.id,
        snapshot=snapshot.commit.tree,
        data=opened.dataset.digest,
        rows=snapshot.commit.rows,
        curvature=_locked_curvature(entries.get(opened.name), opened),
    )
    known = {checkpoint.name for checkpoint in project.config.checkpoints}
    write_lock(project.root, {n: entry for n, entry in entries.items() if n in known})


def _locked_curvature(before: LockEntry | None, opened: ProjectCheckpoint) -> str:
    """The curvature for a line of rin.lock: the one that it had, or the one that is here."""
    if before is not None and before.fingerprint == opened.fingerprint and before.curvature:
        return before.curvature
    return opened.curvature_cache.id if opened.has_curvature() else ""
