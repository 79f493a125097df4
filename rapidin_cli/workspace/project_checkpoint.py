"""A checkpoint of a project: its tokens, its identity, its caches."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.errors import MissingError
from rapidin_cli.models.checkpoints import Checkpoint, resolve, resolve_start
from rapidin_cli.models.fingerprints import Fingerprints
from rapidin_cli.models.loading import load_tokenizer
from rapidin_cli.models.tensor_files import only_factors
from rapidin_cli.work.devices import choose_devices
from rapidin_cli.work.pools import LOCAL, RAY
from rapidin_cli.work.worker import Job
from rapidin_cli.workspace.config import CONFIG_FILE, CheckpointSettings, Config
from rapidin_cli.workspace.lock import read_lock
from rapidin_cli.workspace.places import Places
from rapidin_storage import Cache, Snapshot, cache_name

if TYPE_CHECKING:
    from rapidin_cli.gradients.capture.target import Target
    from rapidin_cli.gradients.stored_curvature import CollectedCurvature
    from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint


class ProjectCheckpoint:
    """One checkpoint with its data and its caches; slow work is done when it is needed.

    Args:
        folder, config, places, fingerprints: the project's.
        settings: its entry in rin.toml.
        skip_bad: skip unusable rows instead of stopping.

    Raises:
        InputError: its folder is missing or not a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        places: Places,
        fingerprints: Fingerprints,
        settings: CheckpointSettings,
        *,
        skip_bad: bool = True,
    ) -> None:
        self.folder = folder
        self.config = config
        self.name = settings.name
        self._places = places
        self._fingerprints = fingerprints
        self._skip_bad = skip_bad
        model = config.model
        path = settings.path or [each.path for each in config.checkpoints if not each.start][-1]
        find = resolve_start if settings.start else resolve
        self.checkpoint: Checkpoint = find(
            folder, settings.name, path, model.base, trust=model.trust_remote_code
        )

    @cached_property
    def stamped(self) -> Checkpoint:
        """The checkpoint with stamps of its files, taken before they are hashed or loaded."""
        return self.checkpoint.stamped()

    @cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint's tensors and configuration."""
        return self._fingerprints.checkpoint(self.stamped)

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        return self._fingerprints.tokenizer(self.checkpoint, self.config.data.rendering())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes cached rows comparable; its hash is the cache-id."""
        return {
            "checkpoint": self.fingerprint,
            "tokenizer": self._tokenizer_fingerprint,
            "gradient": self._gradient_identity,
        }

    @cached_property
    def _gradient_identity(self) -> dict[str, Any]:
        adapter = self.checkpoint.base is not None
        linear = adapter and only_factors(self.checkpoint.path)
        return self.config.gradient.identity(linear=linear)

    @cached_property
    def cache(self) -> Cache:
        """The cache of this checkpoint under this gradient spec, in the project's store."""
        return self._places.cache(cache_name(self.identity))

    @property
    def curvature_identity(self) -> dict[str, Any]:
        """What makes collected curvature comparable; its hash is its cache-id."""
        return {
            "checkpoint": self.fingerprint,
            "tokenizer": self._tokenizer_fingerprint,
            "curvature": self.config.curvature.identity(self._gradient_identity),
        }

    @property
    def curvature_cache(self) -> Cache:
        """The cache that holds this checkpoint's curvature."""
        return self._places.cache(cache_name(self.curvature_identity))

    def newest(self) -> Snapshot | None:
        """Return the newest snapshot of its rows, from the store or else from a remote."""
        return self._places.newest(self.cache.id)

    def snapshot(self) -> Snapshot:
        """Do the same as `newest`, but there must be one.

        Raises:
            MissingError: nothing is cached for it yet.
        """
        found = self.newest()
        if found is None and "capture" in self._gradient_identity:
            linear = {**self.identity, "gradient": self.config.gradient.identity(linear=True)}
            if self._places.newest(cache_name(linear)) is not None:
                raise MissingError(
                    f"checkpoint {self.name!r} has rows of its linear layers alone, as rin cached "
                    "them before it captured all that was trained",
                    hint=f'rin cache {self.name}, or set [gradient] capture = "linear" in '
                    f"{CONFIG_FILE} to ask those",
                )
        return there(found, self.name)

    def newest_curvature(self) -> Snapshot | None:
        """Return the newest snapshot of its curvature; None if no whole one is there."""
        from rapidin_cli.gradients.stored_curvature import is_whole

        found = self._places.newest(self.curvature_cache.id)
        return found if found is not None and is_whole(found) else None

    def has_curvature(self) -> bool:
        """Whether its curvature is in the store or in rin.lock; no remote is contacted."""
        from rapidin_cli.gradients.stored_curvature import is_whole

        cache = self.curvature_cache
        if (here := cache.snapshot()) is not None and is_whole(here):
            return True
        entry = read_lock(self.folder).get(self.name)
        return entry is not None and entry.curvature == cache.id

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return load_tokenizer(self.checkpoint)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns rows and queries into tokens."""
        return Encoder(self.tokenizer, self.config.data)

    @cached_property
    def dataset(self) -> Dataset:
        """All training examples as this checkpoint's tokenizer reads them."""
        return load_dataset(
            self.folder,
            self.config.data,
            lambda: self.encoder,
            skip_bad=self._skip_bad,
            kept=self.folder / ".rin" / "data",
            tokenizer=self._tokenizer_fingerprint,
        )

    def jobs(self, devices: str, workers: int | None) -> list[Job]:
        """Return one job per worker."""
        config = self.config
        return [
            Job(self.stamped, config.gradient, device, threads, config.model.dtype)
            for device, threads in choose_devices(devices, workers or config.cache.workers)
        ]

    def load(
        self,
        device: str = "auto",
        *,
        snapshot: Snapshot | None = None,
        hold: str = "disk",
        executor: str = LOCAL,
    ) -> LoadedCheckpoint:
        """Load the model, to ask it about its cached rows.

        Args:
            snapshot: of its rows; the newest by default.
            hold: see `LoadedCheckpoint`.
            executor: what scans cached rows, `local` or `ray`.
        """
        from rapidin_cli.gradients.optimizer_state import second_moments
        from rapidin_cli.influence import scan
        from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint
        from rapidin_cli.work.worker import build_engine

        scanner: scan.Scan = scan.scan
        if executor == RAY:
            from rapidin_cli.influence import ray_scan

            scanner = ray_scan.scan
        engine = build_engine(self.jobs(device, 1)[0])
        return LoadedCheckpoint(
            engine,
            self.tokenizer,
            self.encoder,
            self.dataset,
            snapshot or self.snapshot(),
            partial(self._curvature, engine.passes.targets),
            partial(second_moments, self.checkpoint, engine.passes),
            hold,
            scanner,
        )

    def _curvature(self, targets: list[Target]) -> CollectedCurvature:
        from rapidin_cli.gradients.stored_curvature import load

        snapshot = self.newest_curvature()
        if snapshot is None:
            raise MissingError(
                f"no curvature was collected for checkpoint {self.name!r}, and the score ekfac "
                "needs it",
                hint=f"rin curvature {self.name}",
            )
        return load(snapshot, targets)


def there(snapshot: Snapshot | None, name: str) -> Snapshot:
    """Return the snapshot of a checkpoint's rows.

    Raises:
        MissingError: there is none.
    """
    if snapshot is None:
        raise MissingError(
            f"nothing is cached for checkpoint {name!r} with the settings in {CONFIG_FILE}",
            hint=f"rin cache {name}",
        )
    return snapshot
