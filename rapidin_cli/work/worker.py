"""Gradient work over devices: one process per device, each with its own model.

The parent hands out batches and gets encoded rows back over one pipe per worker. A pipe
ends when the parent dies, however it dies, and then the worker ends too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rapidin_cli.errors import RinError, out_of_memory
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model
from rapidin_cli.work.devices import compute_dtype

if TYPE_CHECKING:
    from rapidin_cli.gradients.capture.target import Skipped
    from rapidin_cli.gradients.engine import GradientEngine
    from rapidin_cli.gradients.layout import RowLayout
    from rapidin_cli.gradients.passes import Batch


MAX_DEATHS = 3
"""Workers that may die on a batch before it is given up."""

Arrays = dict[str, np.ndarray[Any, Any]]
Tokens = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""input_ids and labels of a padded batch, (B, T) each."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to build its engine.

    Attributes:
        checkpoint: what to load.
        spec: what to compute.
        device: `cpu` or `cuda:N`.
        threads: intra-op threads; 0 leaves torch's default.
        dtype: `auto`, `float32` or `bfloat16`.
    """

    checkpoint: Checkpoint
    spec: GradientSpec
    device: str
    threads: int
    dtype: str


class WorkerError(RinError):
    """A worker failed in a way that trying again will not fix."""


def build_engine(job: Job) -> GradientEngine:
    """Load the model and make the engine."""
    import torch

    from rapidin_cli.gradients.engine import GradientEngine
    from rapidin_cli.gradients.memory import bound_kernels, spare

    bound_kernels()
    if job.device == "cpu":
        spare()
    if job.threads:
        torch.set_num_threads(job.threads)
    compute: Any = compute_dtype(job.dtype, job.device)
    model = load_model(job.checkpoint, job.device, float32=compute == "float32")
    return GradientEngine(model, job.spec, torch.device(job.device), compute)


PART_SECONDS = 5.0
"""How long a part of a batch should take: a crash costs little more, and progress shows."""

# The first guess of the pace: lengths of the rows that are tried, and when that was enough.
_TRIED_LENGTH, _TRIED_ROWS, _TRIED_SECONDS = 32, (1, 1, 8, 64), 0.25


class Worker:
    """An engine with the row encoding, and batches no larger than memory and patience.

    Attributes:
        takes: memory of a batch.
        limit: padded tokens that a part of a batch may have, except a single row, of which less
            is kept; lower once memory has run out.
        token_seconds: what a padded token of the last part took, at first of a trial.
    """

    def __init__(self, job: Job) -> None:
        from rapidin_cli.gradients.memory import batch_bytes, batch_limit
        from rapidin_cli.gradients.rows.kinds import row_kind

        self.engine = build_engine(job)
        self._kind = row_kind(self.engine.layout)
        self.takes = batch_bytes(self.engine.passes)
        self.limit = batch_limit(self.engine.passes.device, self.takes)
        self.engine.passes.keeps = self.limit
        self.token_seconds = self._try()

    @property
    def ready(self) -> Ready:
        """What the one who has it made must know."""
        return Ready(self.engine.layout, self.engine.skipped, self.token_seconds)

    def rows(self, tokens: Tokens) -> Arrays:
        """Return the store arrays of a batch."""
        parts = list(self.parts(tokens))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def parts(self, tokens: Tokens) -> Iterator[Arrays]:
        """Yield the store arrays of a batch, from its first rows to its last."""
        while len(tokens[0]):
            part = self.part(tokens)
            yield part
            tokens = after(tokens, len(part["loss"]))

    def part(self, tokens: Tokens) -> Arrays:
        """Return the store arrays of the first rows of a batch.

        Of as many as fit in memory and take a few seconds, but of one at least. If they do not
        fit after all, half of them are tried, and no later part is larger.
        """
        from rapidin_cli.gradients.memory import release_memory

        length = tokens[0].shape[1]
        while True:
            rows = min(len(tokens[0]), self.rows_at_once(length))
            start = time.monotonic()
            try:
                done = self._rows((tokens[0][:rows], tokens[1][:rows]))
            except (MemoryError, RuntimeError) as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                self.limit = rows // 2 * length
            else:
                self.token_seconds = (time.monotonic() - start) / (rows * length)
                return done
            release_memory()  # when the error, which holds what there was, is gone

    def rows_at_once(self, length: int) -> int:
        """Return how many rows of that many padded tokens make a part."""
        patience = int(PART_SECONDS / max(self.token_seconds, 1e-9))
        return max(1, min(self.limit, patience) // length)

    def _rows(self, tokens: Tokens) -> Arrays:
        import torch

        from rapidin_cli.gradients.passes import Batch

        batch: Batch = Batch(torch.from_numpy(tokens[0]), torch.from_numpy(tokens[1]))
        return self._kind.encode(self.engine(batch))

    def _try(self) -> float:
        """Return the seconds that a token takes, from a few rows that are not kept.

        So even the first part of a batch has the right size, and slow machines are known before
        it is done. The first trial also sets things up; more rows are tried where they are fast.
        """
        from rapidin_cli.gradients.memory import release_memory

        found = 0.0
        for rows in _TRIED_ROWS:
            count = rows * _TRIED_LENGTH
            if found and count > self.limit:
                break
            ids = np.arange(count, dtype=np.int64).reshape(rows, -1) % self.engine.passes.vocabulary
            start = time.monotonic()
            try:
                self._rows((ids, ids))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                break
            elapsed = time.monotonic() - start
            found = elapsed / count
            if elapsed > _TRIED_SECONDS * (1 if rows > 1 else 8):
                break
        release_memory()
        return found


def after(tokens: Tokens, rows: int) -> Tokens:
    """Return a batch without its first rows."""
    return tokens[0][rows:], tokens[1][rows:]


@dataclass(frozen=True)
class Ready:
    """What a pool knows once a model is loaded.

    Attributes:
        layout, skipped: of its engine.
        token_seconds: what a padded token should take with all workers; 0 if unknown.
    """

    layout: RowLayout
    skipped: list[Skipped]
    token_seconds: float = 0.0


@dataclass(frozen=True)
class Poison:
    """Stands for the rows that a batch lacks since three workers died on them, and says how."""

    manner: str


class Pool(Protocol):
    """What computes rows."""

    ready: Ready

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, where, rows) as parts of batches are done.

        Those of a batch come from its first rows to its last. `Poison` stands for all that are
        still missing.
        """

    def close(self) -> None:
        """End what was started."""
