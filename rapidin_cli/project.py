"""A project: the folder with rin.toml, and everything that can be asked of it.

The Python API beside the command line; the commands use only this::

    from rapidin_cli import Project
    project = Project.open(".")
    project.cache()
    report = project.retrieve([Question("q1", prompt="...", response="...")])
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli import __version__
from rapidin_cli.caching import Plan, Progress, Settings, Silent, cache_rows, make_plan
from rapidin_cli.checkpoints import Checkpoint, Fingerprints, load_tokenizer, resolve
from rapidin_cli.config import CONFIG_FILE, CheckpointSettings, Config, load_config
from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.errors import InputError, MissingError, NoProjectError
from rapidin_cli.lock import LockEntry, read_lock, write_lock
from rapidin_cli.results import Results
from rapidin_cli.workers import Job, choose_devices
from rapidin_storage import Cache, Snapshot, open_root
from rapidin_storage import cache_name

if TYPE_CHECKING:
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.influence.retrieve import Options, Retriever

_RIN_IGNORE = (
    "# All of this can be made again or pulled; rin.toml and rin.lock are what to commit.\n*\n"
)


@dataclass(frozen=True)
class Cached:
    """What `Project.cache` did for one checkpoint."""

    checkpoint: str
    computed: int
    snapshot: Snapshot
    dataset: Dataset


class Opened:
    """One checkpoint with its data and its cache."""

    def __init__(self, project: Project, settings: CheckpointSettings, *, skip_bad: bool) -> None:
        model = project.config.model
        self._project = project
        self.checkpoint: Checkpoint = resolve(
            project.root,
            settings.name,
            settings.path,
            model.base,
            trust=model.trust_remote_code,
        )
        self._skip_bad = skip_bad

    @cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint's tensors and configuration."""
        return self._project.fingerprints.checkpoint(self.checkpoint)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes cached rows comparable; its hash is the cache-id."""
        rendering = self._project.config.data.rendering()
        return {
            "checkpoint": self.fingerprint,
            "tokenizer": self._project.fingerprints.tokenizer(self.checkpoint, rendering),
            "gradient": self._project.config.gradient.identity(),
        }

    @cached_property
    def cache(self) -> Cache:
        """The cache of this checkpoint under this gradient spec."""
        return Cache(self._project.store, cache_name(self.identity))

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return load_tokenizer(self.checkpoint)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns rows and queries into tokens."""
        return Encoder(self.tokenizer, self._project.config.data)

    @cached_property
    def dataset(self) -> Dataset:
        """All training examples as this checkpoint's tokenizer reads them."""
        project = self._project
        return load_dataset(
            project.root, project.config.data, self.encoder, skip_bad=self._skip_bad
        )

    def plan(self, snapshot: Snapshot | None) -> Plan:
        """Return what caching would compute."""
        return make_plan(self.dataset, snapshot, self._project.cache_settings)

    def jobs(self, devices: str, workers: int | None) -> list[Job]:
        """Return one job per worker."""
        config = self._project.config
        return [
            Job(self.checkpoint, config.gradient, device, threads, config.model.dtype)
            for device, threads in choose_devices(devices, workers or config.cache.workers)
        ]


class Project:
    """The folder that holds rin.toml."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        self.config = config
        self.results = Results(root / ".rin" / "results")
        self.fingerprints = Fingerprints(root / ".rin" / "fingerprints.json")
        place = config.storage.root
        try:
            self.store = open_root(place if "://" in place else root / place)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"[storage] root = {place!r} cannot be opened: {error}",
                hint="install what it names, or correct rin.toml",
            ) from None
        self.cache_settings = Settings(config.cache.batch_tokens, config.cache.commit_seconds)

    @classmethod
    def open(cls, start: str | Path = ".") -> Project:
        """Open the project of a folder or of the nearest folder above it.

        Raises:
            NoProjectError: there is none. InputError: its rin.toml is wrong.
        """
        here = Path(start).resolve()
        for folder in (here, *here.parents):
            if (folder / CONFIG_FILE).is_file():
                project = cls(folder, load_config(folder))
                prepare_rin_folder(folder)
                return project
        raise NoProjectError(f"there is no {CONFIG_FILE} in {here} or above", hint="rin init")

    def checkpoint_settings(self, names: Sequence[str] = ()) -> list[CheckpointSettings]:
        """Return the checkpoints of that name, or all.

        Raises:
            InputError: rin.toml names none, or none of that name.
        """
        known = {checkpoint.name: checkpoint for checkpoint in self.config.checkpoints}
        if not known:
            raise InputError(
                f"{CONFIG_FILE} names no checkpoint", hint=f"add [[checkpoints]] to {CONFIG_FILE}"
            )
        for name in names:
            if name not in known:
                raise InputError(
                    f"{CONFIG_FILE} has no checkpoint {name!r} (it has {', '.join(known)})",
                    hint="rin status lists them",
                )
        return [known[name] for name in names] if names else list(known.values())

    def opened(self, name: str = "", *, skip_bad: bool = True) -> Opened:
        """Open one checkpoint, by default the last that rin.toml names."""
        settings = self.checkpoint_settings([name] if name else [])[-1]
        return Opened(self, settings, skip_bad=skip_bad)

    def cache(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        skip_bad: bool = False,
        progress: Callable[[str], Progress] = lambda _: Silent(),
    ) -> list[Cached]:
        """Compute and commit the rows that are missing; return what was done.

        Args:
            names: checkpoints; all by default.
            devices: `auto`, `cpu` or `cuda:0,cuda:1`.
            workers: processes, when the device is the CPU.
            skip_bad: leave unusable rows out instead of stopping.
            progress: makes a watcher for a checkpoint.
        """
        done = []
        for settings in self.checkpoint_settings(names):
            opened = Opened(self, settings, skip_bad=skip_bad)
            snapshot = opened.cache.snapshot()
            plan = opened.plan(snapshot)
            if plan.batches or snapshot is None:
                snapshot = cache_rows(
                    opened.cache,
                    plan,
                    opened.jobs(devices, workers),
                    self.cache_settings,
                    opened.identity,
                    {"rin": __version__, "checkpoint": settings.name},
                    progress(settings.name),
                )
            self._lock(settings.name, opened, snapshot)
            done.append(Cached(settings.name, plan.rows, snapshot, opened.dataset))
        return done

    def _lock(self, name: str, opened: Opened, snapshot: Snapshot) -> None:
        entries = read_lock(self.root)
        entries[name] = LockEntry(
            fingerprint=opened.fingerprint,
            cache=opened.cache.id,
            snapshot=snapshot.commit.number,
            commit=snapshot.commit.digest,
            data=opened.dataset.digest,
            rows=snapshot.commit.rows,
        )
        known = {checkpoint.name for checkpoint in self.config.checkpoints}
        write_lock(self.root, {n: entry for n, entry in entries.items() if n in known})

    def snapshot(self, opened: Opened) -> Snapshot:
        """Return the newest snapshot of a checkpoint's cache.

        Raises:
            MissingError: nothing is cached for it yet.
        """
        snapshot = opened.cache.snapshot()
        if snapshot is None:
            raise MissingError(
                f"nothing is cached for checkpoint {opened.checkpoint.name!r} with the settings "
                f"of {CONFIG_FILE}",
                hint=f"rin cache {opened.checkpoint.name}",
            )
        return snapshot

    def retriever(self, name: str = "", *, device: str = "auto") -> tuple[Retriever, Opened]:
        """Load a checkpoint and its cache, to answer questions."""
        from rapidin_cli.influence.retrieve import Retriever
        from rapidin_cli.workers import build_engine

        opened = self.opened(name)
        snapshot = self.snapshot(opened)
        engine = build_engine(opened.jobs(device, 1)[0])
        retriever = Retriever(engine, opened.tokenizer, opened.encoder, opened.dataset, snapshot)
        return retriever, opened

    def retrieve(
        self,
        questions: Sequence[Question],
        options: Options | None = None,
        *,
        checkpoint: str = "",
        device: str = "auto",
        command: str = "",
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`)."""
        from rapidin_cli.influence.retrieve import Options, answer_all
        from rapidin_cli.influence.score import choose_score

        options = options or Options(batch_tokens=self.config.cache.batch_tokens)
        retriever, opened = self.retriever(checkpoint, device=device)
        choose_score(options.score, retriever.layout)
        answers = answer_all(retriever, questions, options, progress)
        report = self._report(answers, options.score, retriever, opened, command)
        self.results.save(report)
        return report

    def _report(
        self,
        answers: Sequence[dict[str, Any]],
        score: str,
        retriever: Retriever,
        opened: Opened,
        command: str,
    ) -> dict[str, Any]:
        from rapidin_cli.influence.score import SCORES, SIGN
        from rapidin_cli.report.view import make_report

        spec, dataset = self.config.gradient, opened.dataset
        snapshot = retriever.snapshot
        row = f"{spec.sketch}, {retriever.layout.dimensions:,} dimensions, {spec.precision}"
        return make_report(
            provenance=provenance(command),
            checkpoint={
                "name": opened.checkpoint.name,
                "fingerprint": opened.fingerprint,
                "cache": opened.cache.id,
                "snapshot": snapshot.commit.number,
                "commit": snapshot.commit.digest,
            },
            data={
                "files": list(self.config.data.files),
                "digest": dataset.digest,
                "rows": len(dataset.examples),
                "examples": len(dataset.by_digest),
            },
            score={
                "name": score,
                "unit": SCORES[score].unit,
                "sign": SIGN,
                "description": SCORES[score].description,
                "row": row,
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


def provenance(command: str) -> dict[str, str]:
    """Return versions, command and time, for reports."""
    import datetime

    import torch
    import transformers

    return {
        "rin": __version__,
        "torch": f"{torch.__version__} (Python {platform.python_version()})",
        "transformers": str(transformers.__version__),
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def prepare_rin_folder(root: Path) -> None:
    """Make .rin/ with a .gitignore of its own."""
    ignore = root / ".rin" / ".gitignore"
    if not ignore.exists():
        ignore.parent.mkdir(parents=True, exist_ok=True)
        ignore.write_text(_RIN_IGNORE, encoding="utf-8")
