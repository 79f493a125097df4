"""The Python interface: a project, and what can be done with it.

The command line rests on it; each method is one call down::

    from rapidin_cli import Project
    project = Project.open(".")
    project.cache()
    report = project.retrieve([Question("q1", prompt="...", response="...")])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rapidin_cli.work.caching import WHOLE, CachingProgress, Part
from rapidin_cli.work.pools import LOCAL
from rapidin_cli.workspace import moving, runs
from rapidin_cli.workspace.runs import Cached, How
from rapidin_cli.workspace.workspace import Workspace

if TYPE_CHECKING:
    from rapidin_cli.gradients.stored_curvature import CollectedCurvature
    from rapidin_cli.influence.options import Options, StageProgress
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.influence.session import Session as Asking
    from rapidin_cli.work.forecast import Forecast


class Project(Workspace):
    """The folder that holds rin.toml, opened with `Project.open`."""

    def cache(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        skip_bad: bool = False,
        part: Part = WHOLE,
        fetch: bool = True,
        executor: str = LOCAL,
        tell: Callable[[str], None] = lambda _: None,
        progress: Callable[[str], CachingProgress] = lambda _: CachingProgress(),
    ) -> list[Cached]:
        """Compute and commit the rows that are missing; return what was done.

        Rows that a remote has are fetched and not computed.

        Args:
            names: checkpoints; all by default.
            devices, workers, skip_bad, part, fetch, executor: see `How`.
            tell: is told what remotes delivered.
            progress: makes a watcher for a checkpoint.

        Raises:
            UsageError: an executor that cannot be had.
            RinError: bad data or settings; or a remote, which may have rows, cannot be asked.
            StorageError: the store cannot be read or written.
        """
        how = How(devices, workers, skip_bad, part, fetch, executor)
        return runs.cache(self, names, how, tell, progress)

    def forecast(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        skip_bad: bool = False,
        part: Part = WHOLE,
    ) -> Iterator[Forecast]:
        """Yield what `cache`, with the same arguments, would take for each checkpoint.

        Loads each model that there is work for and computes a few rows, which are not kept.
        """
        return runs.forecast(self, names, How(devices, workers, skip_bad, part))

    def curvature(
        self,
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
            names: checkpoints; all by default.
            devices, workers, skip_bad: see `How`.
            again: collect anew what is there already.
            progress: is told (checkpoint, done, all).
        """
        how = How(devices, workers, skip_bad)
        return runs.curvature(self, names, how, again=again, progress=progress)

    def push(
        self, remote: str = "", names: Sequence[str] = (), **options: Any
    ) -> list[moving.Moved]:
        """Copy the caches of checkpoints to a remote: what it lacks, and then the commits.

        Args:
            remote: its name; the only one, or `origin`, by default.
            names: checkpoints; all by default.
            options: `every` copies all caches of the store, `progress` makes a watcher,
                `tell` is told of checkpoints that were left out.

        Raises:
            MissingError: nothing is cached here for a checkpoint.
            StorageError: something could not be copied; what was, stays.
        """
        return moving.move(self, remote, names, pushing=True, **options)

    def pull(
        self, remote: str = "", names: Sequence[str] = (), **options: Any
    ) -> list[moving.Moved]:
        """Copy the caches of checkpoints from a remote; the arguments are those of `push`.

        Needs neither models nor data: rin.lock says which caches.
        """
        return moving.move(self, remote, names, pushing=False, **options)

    def session(
        self,
        checkpoint: str = "",
        *,
        checkpoints: Sequence[str] | None = None,
        device: str = "auto",
        hold: str = "disk",
        executor: str = LOCAL,
    ) -> Session:
        """Load checkpoints once, to ask them any number of times.

        Args:
            checkpoint: whom to ask; the last by default.
            checkpoints: several whose scores are added, weighted by their learning rates; an
                empty list means all.
            device: `auto`, `cpu` or `cuda:N`.
            hold: where cached rows stay after the first question: they are read for each on
                `disk`, and once into the memory of the `cpu` or the `gpu`.
            executor: `local`, or `ray`: the cluster of RAY_ADDRESS, or one that is started
                here, scans the cached rows of a single checkpoint.

        Raises:
            UsageError: an executor or a device that cannot be had; a checkpoint named twice.
            MissingError: a checkpoint has no cached rows.
        """
        from rapidin_cli.workspace.asking import open_session

        asking = open_session(self, checkpoint, checkpoints, device, hold, executor)
        return Session(self, asking)

    def retrieve(
        self,
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
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`).

        Loads everything for these questions; see `session`, which has the same arguments.

        Raises:
            UsageError: an unknown score, or a damping for one that has none.
        """
        from rapidin_cli.influence.score import check_score

        if options is not None:
            check_score(options.score, options.damping)
        asked = self.session(
            checkpoint, checkpoints=checkpoints, device=device, hold=hold, executor=executor
        )
        return asked.retrieve(questions, options, command=command, progress=progress)


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
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`).

        Raises:
            MissingError: a checkpoint lacks the curvature for the score.
            UsageError: the rows cannot answer the score.
        """
        from rapidin_cli.influence.options import Options
        from rapidin_cli.report.compose import compose

        config = self._project.config
        options = options or Options(batch_tokens=config.cache.batch_tokens)
        answered = self._asking.ask(questions, options, progress)
        report = compose(answered, config.data.files, command)
        self._project.results.save(report)
        return report
