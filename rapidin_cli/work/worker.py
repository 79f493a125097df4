"""Gradient work over devices: one process per device, each with its own model.

The parent hands out batches and gets encoded rows back over one pipe per worker. A pipe
ends when the parent dies, however it dies, and then the worker ends too.
"""

from __future__ import annotations

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
    from rapidin_cli.gradients.capture import Skipped
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
    from rapidin_cli.gradients.memory import bound_kernels

    bound_kernels()
    if job.threads:
        torch.set_num_threads(job.threads)
    compute: Any = compute_dtype(job.dtype, job.device)
    model = load_model(job.checkpoint, job.device, float32=compute == "float32")
    return GradientEngine(model, job.spec, torch.device(job.device), compute)


class Worker:
    """An engine with the row encoding, and batches no larger than memory.

    Attributes:
        token_bytes: memory of each padded token of a batch.
        limit: padded tokens that a batch may have.
    """

    def __init__(self, job: Job) -> None:
        from rapidin_cli.gradients.memory import batch_limit, token_bytes
        from rapidin_cli.gradients.rows.kinds import row_kind

        self.engine = build_engine(job)
        self._kind = row_kind(self.engine.layout)
        self.token_bytes = token_bytes(self.engine.passes)
        self.limit = batch_limit(self.engine.passes.device, self.token_bytes)

    def rows(self, tokens: Tokens) -> Arrays:
        """Return the store arrays of a batch.

        It is cut into parts that should fit in memory; those that do not fit after all are
        halved.
        """
        count, length = tokens[0].shape
        most = max(1, self.limit // length)
        parts = [
            self._rows((tokens[0][first : first + most], tokens[1][first : first + most]))
            for first in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _rows(self, tokens: Tokens) -> Arrays:
        import torch

        from rapidin_cli.gradients.passes import Batch

        try:
            batch: Batch = Batch(torch.from_numpy(tokens[0]), torch.from_numpy(tokens[1]))
            return self._kind.encode(self.engine(batch))
        except (MemoryError, RuntimeError) as error:
            half = len(tokens[0]) // 2
            if not half or not out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        first = self._rows((tokens[0][:half], tokens[1][:half]))
        second = self._rows((tokens[0][half:], tokens[1][half:]))
        return {name: np.concatenate([first[name], second[name]]) for name in first}


@dataclass(frozen=True)
class Ready:
    """What a pool knows once a model is loaded."""

    layout: RowLayout
    skipped: list[Skipped]


@dataclass(frozen=True)
class Poison:
    """Stands for the rows of a batch on which three workers died, and says how."""

    manner: str


class Pool(Protocol):
    """What computes rows."""

    ready: Ready

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, where, rows) as batches are done."""

    def close(self) -> None:
        """End what was started."""
