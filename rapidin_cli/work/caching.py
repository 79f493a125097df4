"""`rin cache`: compute the rows that a snapshot lacks and commit them, part by part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rapidin_cli.data.examples import Dataset, Example, padded, plan_batches
from rapidin_cli.errors import InputError
from rapidin_cli.work.pools import LOCAL, open_pool
from rapidin_cli.work.worker import Arrays, Job, Poison, Ready
from rapidin_storage import Cache, CacheWriter, Snapshot

if TYPE_CHECKING:
    from rapidin_cli.gradients.layout import RowLayout

_CHUNK_BYTES = 16 * 2**20
_ORDERED_SECONDS = 30.0  # how long rows may wait for those before them
MAX_PENDING_BYTES = 128 * 2**20
"""Rows that are computed but not committed yet take at most this many bytes."""


class CachingProgress:
    """What a caching run reports; this one ignores it."""

    def fetching(self, remote: str) -> None:
        """Rows are looked for on a remote."""

    def start(self, rows: int, tokens: int) -> None:
        """Work begins: this many rows and tokens are missing."""

    def ready(self, ready: Ready) -> None:
        """The model is loaded."""

    def advance(self, rows: int, tokens: int, device: str) -> None:
        """A part of a batch is done."""

    def committed(self, snapshot: Snapshot) -> None:
        """What was done so far is safe."""


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


Part = tuple[int, int]
"""(i, n): the i-th of n shares of the examples, i from 1 to n."""

WHOLE: Part = (1, 1)


def make_plan(
    dataset: Dataset, snapshot: Snapshot | None, settings: Settings, part: Part = WHOLE
) -> Plan:
    """Compare the data with what is cached.

    Args:
        part: leaves out the other shares; an example's digest decides its share, so that
            shares stay the same whatever the order and size of the data.
    """
    done = set(snapshot.index) if snapshot else set()
    number, count = part
    ours = [e for e in dataset.examples if int.from_bytes(e.digest[:8]) % count == number - 1]
    batches = plan_batches(ours, done, settings.batch_tokens)
    return Plan(batches, sum(digest in done for digest in dataset.by_digest))


def cache_rows(
    cache: Cache,
    plan: Plan,
    jobs: Sequence[Job],
    settings: Settings,
    identity: dict[str, Any],
    about: dict[str, Any],
    progress: CachingProgress,
    executor: str = LOCAL,
    check: Callable[[], None] = lambda: None,
) -> Snapshot:
    """Compute and commit the rows of a plan; return the newest snapshot.

    Rows are committed in the plan's order, whatever order workers finish them in: what is
    missing after an interruption is then the plan's end, and where commits fall between
    batches a second run cuts it into the same ones. A part that has waited for half a minute
    is committed out of its turn. Whatever ends the run, what was finished is committed.

    Args:
        check: called before each commit; what it raises ends the run, and nothing is committed.

    Raises:
        InputError, WorkerError, StorageError, or what interrupted it: after committing.
    """
    progress.start(plan.rows, plan.tokens)
    pool = open_pool(jobs, executor)
    try:
        progress.ready(pool.ready)
        writer = _open_writer(cache, pool.ready.layout, identity, about)
        run = _Run(writer, plan, progress, check)
        clock = _Clock(settings.commit_seconds)
        try:
            for number, device, rows in pool.run(_Padded(plan.batches)):
                run.take(number, device, rows)
                if run.waited() > max(_ORDERED_SECONDS, settings.commit_seconds):
                    run.take_rest()
                if clock.due() or run.pending_bytes > MAX_PENDING_BYTES:
                    run.commit()
                    clock.restart()
        finally:
            # After an error the order is given up for the sake of what was done.
            run.take_rest()
            snapshot = run.commit()
    finally:
        pool.close()
    if run.failures:
        raise InputError(
            f"{run.failures[0]} (failures: {len(run.failures)}); everything else is cached",
            hint='try [model] dtype = "float32" or a lower [cache] batch_tokens in rin.toml, '
            "or check the row",
        )
    assert snapshot is not None
    return snapshot


class _Run:
    """Puts finished parts of batches into the plan's order and then into the writer."""

    def __init__(
        self,
        writer: CacheWriter,
        plan: Plan,
        progress: CachingProgress,
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self._writer = writer
        self._plan = plan
        self._progress = progress
        self._taken: Counter[int] = Counter()  # rows of each batch
        self._waiting: dict[int, list[_Done]] = {}
        self._following = 0
        self.failures: list[str] = []

    @property
    def pending_bytes(self) -> int:
        """Bytes of rows that are not committed yet."""
        row_bytes = sum(spec.row_bytes for spec in self._writer.arrays.values())
        return self._writer.new_rows * row_bytes

    def waited(self) -> float:
        """For how many seconds the oldest part waits for an earlier batch."""
        times = [parts[0].time for parts in self._waiting.values() if parts]
        return time.monotonic() - min(times) if times else 0.0

    def take(self, number: int, device: str, rows: Arrays | Poison) -> None:
        """Take the next rows of a batch, and add all whose turn has come."""
        batch, first = self._plan.batches[number], self._taken[number]
        stop = len(batch) if isinstance(rows, Poison) else first + len(rows["loss"])
        part = batch[first:stop]
        self._progress.advance(len(part), sum(len(e.input_ids) for e in part), device)
        self._taken[number] = stop
        self._waiting.setdefault(number, []).append(_Done(time.monotonic(), part, rows))
        while self._following < len(self._plan.batches):
            self._add_all(self._following)
            if self._taken[self._following] < len(self._plan.batches[self._following]):
                break
            self._following += 1

    def take_rest(self) -> None:
        """Add what still waits for an earlier batch."""
        for number in sorted(self._waiting):
            self._add_all(number)

    def _add_all(self, number: int) -> None:
        parts = self._waiting.get(number, [])
        while parts:
            done = parts.pop(0)
            self._add(done.part, done.rows)
        self._waiting.pop(number, None)

    def _add(self, batch: list[Example], rows: Arrays | Poison) -> None:
        if isinstance(rows, Poison):
            names = ", ".join(example.row.id for example in batch[:5])
            self.failures.append(f"workers died on the batch with rows {names} ({rows.manner})")
            return
        finite = np.isfinite(rows["loss"]) & np.isfinite(rows["norm"]).all(axis=1)
        for position in np.flatnonzero(~finite):
            row = batch[int(position)].row
            self.failures.append(
                f"the loss or the gradient of row {row.id} ({row.file}:{row.line}) is not finite"
            )
        digests = np.stack([np.frombuffer(example.digest, np.uint8) for example in batch])
        self._writer.add({name: v[finite] for name, v in {**rows, "digest": digests}.items()})

    def commit(self) -> Snapshot | None:
        """Make what was added visible."""
        self._check()
        new = self._writer.new_rows
        snapshot = self._writer.commit()
        if snapshot is not None and new:
            self._progress.committed(snapshot)
        return snapshot


@dataclass(frozen=True)
class _Done:
    """A part of a batch: its examples, their rows, and when they were done."""

    time: float
    part: list[Example]
    rows: Arrays | Poison


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
    from rapidin_cli.gradients.rows.kinds import row_kind

    arrays = row_kind(layout).arrays()
    attributes = {"rin": {"identity": identity, "layout": layout.to_json()}}
    row_bytes = sum(spec.row_bytes for spec in arrays.values())
    return CacheWriter(cache, arrays, attributes, chunk_rows(row_bytes), about)


def chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk: a power of two that makes about 16 MB, 4,096 at most."""
    rows = max(1, _CHUNK_BYTES // row_bytes)
    return min(4096, 1 << (rows.bit_length() - 1))
