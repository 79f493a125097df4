"""A checkpoint of a project, opened: its tokens, its identity, its cache."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from rapidin_cli.caching import WHOLE, Part, Plan, make_plan
from rapidin_cli.checkpoints import Checkpoint, load_tokenizer, resolve
from rapidin_cli.config import CheckpointSettings
from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.workers import Job, choose_devices
from rapidin_storage import Cache, Snapshot, cache_name

if TYPE_CHECKING:
    from rapidin_cli.project import Project


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
        """The cache of this checkpoint under this gradient spec, in the project's store."""
        return Cache(self._project.store, cache_name(self.identity), self._project.upstreams)

    @property
    def curvature_identity(self) -> dict[str, Any]:
        """What makes collected curvature comparable; its hash is its cache-id."""
        config = self._project.config
        return {
            "checkpoint": self.fingerprint,
            "tokenizer": self.identity["tokenizer"],
            "curvature": config.curvature.identity(config.gradient.layers),
        }

    @property
    def curvature_cache(self) -> Cache:
        """The cache that holds this checkpoint's curvature."""
        name = cache_name(self.curvature_identity)
        return Cache(self._project.store, name, self._project.upstreams)

    def snapshot(self) -> Snapshot | None:
        """Return the newest snapshot: the store's, else a remote's, read through; or None."""
        return self._project.newest(self.cache.id)

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
            project.root,
            project.config.data,
            lambda: self.encoder,
            skip_bad=self._skip_bad,
            kept=project.root / ".rin" / "data",
            tokenizer=project.fingerprints.tokenizer(
                self.checkpoint, project.config.data.rendering()
            ),
        )

    def plan(self, snapshot: Snapshot | None, part: Part = WHOLE) -> Plan:
        """Return what caching would compute."""
        return make_plan(self.dataset, snapshot, self._project.cache_settings, part)

    def jobs(self, devices: str, workers: int | None) -> list[Job]:
        """Return one job per worker."""
        config = self._project.config
        return [
            Job(self.checkpoint, config.gradient, device, threads, config.model.dtype)
            for device, threads in choose_devices(devices, workers or config.cache.workers)
        ]
