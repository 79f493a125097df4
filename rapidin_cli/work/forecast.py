"""What `rin cache` would take, known beforehand: rows, bytes, memory and time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from rapidin_cli.data.examples import padded
from rapidin_cli.gradients.memory import give_back
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.work.caching import MAX_PENDING_BYTES, Plan, chunk_rows
from rapidin_cli.work.worker import Job, Worker

_ROUNDS = 2


@dataclass(frozen=True)
class Forecast:
    """What a caching run would take.

    Attributes:
        checkpoint: its name.
        rows, present, tokens: to compute, cached already; padding left out.
        store_bytes: what the new rows take in the store.
        memory_bytes: of the process, or of each worker, at its peak; 0 if nothing is computed.
        device_bytes: of a GPU's memory; 0 on a CPU.
        seconds: with all workers.
    """

    checkpoint: str
    rows: int
    present: int
    tokens: int
    store_bytes: int = 0
    memory_bytes: int = 0
    device_bytes: int = 0
    seconds: float = 0.0


def forecast(name: str, plan: Plan, jobs: Sequence[Job], commit_seconds: float) -> Forecast:
    """Load the model and compute some rows of a middling batch, which are not kept."""
    known = Forecast(name, plan.rows, plan.present, plan.tokens)
    if not plan.rows:
        return known
    worker = Worker(jobs[0])
    device = worker.engine.passes.device
    arrays = row_kind(worker.engine.layout).arrays()
    row_bytes = sum(spec.row_bytes for spec in arrays.values())
    give_back()
    before = psutil.Process().memory_info().rss
    batch = plan.batches[len(plan.batches) // 2]
    tokens = padded(batch)
    elapsed = []
    for _ in range(_ROUNDS):  # the first also sets things up
        start = time.monotonic()
        count = len(worker.part(tokens)["loss"])
        elapsed.append((time.monotonic() - start) / count)
    rate = sum(len(e.input_ids) for e in batch) / len(batch) / min(elapsed)
    seconds = plan.tokens / rate / len(jobs)
    largest = max(_padded_tokens(len(b[0].input_ids), len(b), worker.limit) for b in plan.batches)
    # Of a single row that is longer than the limit half as much is kept, see `Passes.keeps`.
    needed = max(worker.takes.of(min(largest, worker.limit)), largest * worker.takes.token // 2)
    pending = min(MAX_PENDING_BYTES, row_bytes * plan.rows)
    if seconds > commit_seconds:
        pending = min(pending, int(row_bytes * plan.rows * commit_seconds / seconds))
    # A chunk is stored whole, and packed beside it.
    pending += 2 * row_bytes * chunk_rows(row_bytes)
    on_gpu = device.type == "cuda"
    return Forecast(
        name,
        plan.rows,
        plan.present,
        plan.tokens,
        store_bytes=row_bytes * plan.rows,
        memory_bytes=before + pending + (0 if on_gpu else needed),
        device_bytes=torch.cuda.memory_allocated(device) + needed if on_gpu else 0,
        seconds=seconds,
    )


def _padded_tokens(length: int, rows: int, limit: int) -> int:
    """Padded tokens of the largest part of a batch that a worker runs at once."""
    return length * min(rows, max(1, limit // length))
