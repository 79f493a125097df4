"""`rin cache`: compute the rows that a snapshot lacks and commit them, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rapidin_cli.data.examples import Dataset, Example, padded, plan_batches
from rapidin_cli.errors import InputError, RinError
from rapidin_cli.workers import Job, PoisonBatchError, Ready, open_pool
from rapidin_storage import Cache, CacheWriter, Snapshot

if TYPE_CHECKING:
    from rapidin_cli.gradients.rows import RowLayout

_CHUNK_BYTES = 16 * 2**20
_MAX_PENDING_BYTES = 256 * 2**20


class Progress(Protocol):
    """What a run of caching tells whoever watches it."""

    def start(self, rows: int, tokens: int) -> None:
        """Work begins: so many rows and tokens are missing."""

    def ready(self, ready: Ready) -> None:
        """The model is loaded."""

    def advance(self, rows: int, tokens: int, device: str) -> None:
        """A batch is done."""

    def committed(self, snapshot: Snapshot) -> None:
        """What was done so far is safe."""


class Silent:
    """A `Progress` that says nothing."""

    def start(self, rows: int, tokens: int) -> None:
        """See `Progress`."""

    def ready(self, ready: Ready) -> None:
        """See `Progress`."""

    def advance(self, rows: int, tokens: int, device: str) -> None:
        """See `Progress`."""

    def committed(self, snapshot: Snapshot) -> None:
        """See `Progress`."""


@dataclass(frozen=True)
class Settings:
    """How the work is cut (the `[cache]` table)."""

    batch_tokens: int
    commit_seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        batches: in the order of commits.
        present: examples of the data that the snapshot has.
    """

    batches: list[list[Example]]
    present: int

    @property
    def rows(self) -> int:
        """Rows to compute."""
        return sum(map(len, self.batches))

    @property
    def tokens(self) -> int:
        """Tokens to run, padding left out."""
        return sum(len(example.input_ids) for batch in self.batches for example in batch)


def make_plan(dataset: Dataset, snapshot: Snapshot | None, settings: Settings) -> Plan:
    """Compare the data with what is cached."""
    done = set(snapshot.index) if snapshot else set()
    batches = plan_batches(dataset.examples, done, settings.batch_tokens)
    return Plan(batches, sum(digest in done for digest in dataset.by_digest))


def cache_rows(
    cache: Cache,
    plan: Plan,
    jobs: Sequence[Job],
    settings: Settings,
    identity: dict[str, Any],
    about: dict[str, Any],
    progress: Progress,
) -> Snapshot:
    """Compute and commit the rows of a plan; return the newest snapshot.

    Batches are committed in the plan's order, whatever order workers finish them in: what
    is missing after an interruption is then always the plan's end, and a second run cuts
    it into the same batches. Whatever ends the run, what was finished is committed.

    Raises:
        InputError, WorkerError, StorageError, KeyboardInterrupt: after committing.
    """
    progress.start(plan.rows, plan.tokens)
    pool = open_pool(jobs)
    try:
        progress.ready(pool.ready)
        writer = _open_writer(cache, pool.ready.layout, identity, about)
        clock = _Clock(settings.commit_seconds)
        try:
            for number, rows in _in_order(pool, plan, progress):
                _check_finite(plan.batches[number], rows)
                digests = [np.frombuffer(e.digest, np.uint8) for e in plan.batches[number]]
                writer.add({**rows, "digest": np.stack(digests)})
                if clock.due() or writer.new_rows * _row_bytes(writer) > _MAX_PENDING_BYTES:
                    _commit(writer, progress)
                    clock.restart()
        except PoisonBatchError as error:
            names = ", ".join(example.row.id for example in plan.batches[error.number][:5])
            raise RinError(
                f"{error.message}: rows {names}; everything else that was done is cached",
                hint="lower [cache] batch_tokens in rin.toml, or leave these rows out",
            ) from None
        finally:
            snapshot = _commit(writer, progress)
    finally:
        pool.close()
    assert snapshot is not None
    return snapshot


def _check_finite(batch: Sequence[Example], rows: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuse a row whose loss or gradient overflowed: its score would mean nothing."""
    finite = np.isfinite(rows["loss"]) & np.isfinite(rows["norm"]).all(axis=1)
    if not finite.all():
        bad = batch[int(np.flatnonzero(~finite)[0])].row
        raise InputError(
            f"the loss or the gradient of row {bad.id} ({bad.file}:{bad.line}) is not finite; "
            "everything before it is cached",
            hint='set [model] dtype = "float32" in rin.toml, or look at the checkpoint',
        )


def _in_order(
    pool: Any, plan: Plan, progress: Progress
) -> Iterator[tuple[int, dict[str, np.ndarray[Any, Any]]]]:
    finished: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    following = 0
    for number, device, rows in pool.run(_Padded(plan.batches)):
        batch = plan.batches[number]
        progress.advance(len(batch), sum(len(e.input_ids) for e in batch), device)
        finished[number] = rows
        while following in finished:
            yield following, finished.pop(following)
            following += 1


class _Padded(Sequence[Any]):
    """Batches as padded arrays, made when a worker asks for them."""

    def __init__(self, batches: list[list[Example]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return padded(self._batches[number])


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._start >= self._seconds


def _open_writer(
    cache: Cache, layout: RowLayout, identity: dict[str, Any], about: dict[str, Any]
) -> CacheWriter:
    from rapidin_cli.gradients.rows import row_kind

    arrays = row_kind(layout).arrays()
    attributes = {"rin": {"identity": identity, "layout": layout.to_json()}}
    row_bytes = sum(spec.row_bytes for spec in arrays.values())
    return cache.writer(arrays, attributes, chunk_rows(row_bytes), about)


def chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk: a power of two that makes about 16 MB, 4,096 at most."""
    rows = max(1, _CHUNK_BYTES // row_bytes)
    return min(4096, 1 << (rows.bit_length() - 1))


def _row_bytes(writer: CacheWriter) -> int:
    return sum(spec.row_bytes for spec in writer.arrays.values())


def _commit(writer: CacheWriter, progress: Progress) -> Snapshot | None:
    new = writer.new_rows
    snapshot = writer.commit()
    if snapshot is not None and new:
        progress.committed(snapshot)
    return snapshot
