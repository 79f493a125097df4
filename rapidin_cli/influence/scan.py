"""Streaming scores over a cache: every wanted row once, for all queries, in bounded memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.layout import Stored
from rapidin_cli.gradients.rows.kinds import RowKind
from rapidin_cli.influence.ranking import Ranked
from rapidin_cli.influence.score import Array, Score
from rapidin_storage import Snapshot

HOLDS = "disk", "cpu", "gpu"

# Each has a chunk of 16 MB in memory, and reading is what more of them would wait for.
_MOST_THREADS = 16


class CachedRows:
    """The rows of a snapshot, as a scan wants them.

    Args:
        snapshot, kind: the rows.
        hold: `disk` reads them for every scan; `cpu` and `gpu` keep what the first one has
            read, as it was stored, in memory or on the device.
        device: where products are taken; the CPU where the model is on it.

    Raises:
        UsageError: there is no such place.
    """

    def __init__(self, snapshot: Snapshot, kind: RowKind, hold: str, device: torch.device) -> None:
        if hold not in HOLDS or (hold == "gpu" and device.type == "cpu"):
            raise UsageError(
                f"cannot hold cached rows in {hold!r} while the model is on {device}",
                hint=f"choose one of {', '.join(HOLDS)}; gpu needs --device cuda:N",
            )
        self.snapshot = snapshot
        self.kind = kind
        self.device = device
        self._hold = hold
        self._held: dict[int, tuple[int, int, Stored]] = {}

    def chunks(self, numbers: Sequence[int], keep: int) -> Iterator[tuple[int, int, Stored]]:
        """Yield (start, stop, arrays) of the slots of some chunks, valid for `keep` more steps."""
        missing = [number for number in numbers if number not in self._held]
        fresh = iter(self.snapshot.stream(self.kind.scored, missing, keep))
        for number in numbers:
            if number in self._held:
                yield self._held[number]
                continue
            start, stop, stored = next(fresh)
            if self._hold == "disk":
                yield start, stop, stored
                continue
            # numpy's copy: what was read is overwritten by a later chunk.
            kept = {name: torch.from_numpy(values.copy()) for name, values in stored.items()}
            if self._hold == "gpu":
                kept = {name: values.to(self.device) for name, values in kept.items()}
            self._held[number] = start, stop, kept
            yield self._held[number]


class Scan(Protocol):
    """What scores cached rows: `scan` here, or `ray_scan.scan` on a cluster."""

    def __call__(
        self,
        rows: CachedRows,
        directions: Sequence[torch.Tensor],
        score: Score,
        wanted: Array,
        top: int,
        token_top: int,
    ) -> list[Ranked]:
        """See `scan`."""


def scan(
    rows: CachedRows,
    directions: Sequence[torch.Tensor],
    score: Score,
    wanted: Array,
    top: int,
    token_top: int,
) -> list[Ranked]:
    """Score all wanted rows against some queries.

    For each query, the union of the overall `top` of each sign and every token's own `token_top`
    of each sign is kept: re-ranking the overall best would miss a token's true best.

    Args:
        directions: for each query (1 + T, W): its direction, then one for each explained token.
        wanted: (N,) bool, the slots to score.
    """
    widths = [len(part) for part in directions]
    slots = rows.snapshot.commit.slots
    found = [Ranked.nothing(slots, width) for width in widths]
    ends = np.cumsum(widths)
    for at, scores, sizes in chunk_scores(rows, torch.cat(list(directions)), score, wanted):
        for number, part in enumerate(np.split(scores, ends[:-1], axis=1)):
            more = Ranked(part[:, 0], sizes, at, part)
            found[number] = found[number].joined(at, more, top, token_top)
    return found


def chunk_scores(
    rows: CachedRows, directions: torch.Tensor, score: Score, wanted: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield (slots (n,), scores (n, Q), sizes (n,)) of the wanted rows of each chunk."""
    products = rows.kind.products(directions, rows.device, rows.snapshot.commit.slots)

    def scores_of(chunk: tuple[int, int, Stored]) -> tuple[Array, Array, Array]:
        start, stop, whole = chunk
        chosen = np.flatnonzero(wanted[start:stop])
        stored = whole if len(chosen) == stop - start else _some(whole, chosen)
        norm = torch.as_tensor(stored["norm"]).cpu()
        scores = products(stored, score.row_weights(norm))
        return start + chosen, scores.numpy(), score.row_sizes(norm).numpy()

    numbers = np.unique(np.flatnonzero(wanted) // rows.snapshot.commit.chunk_rows).tolist()
    with _one_thread_each() as cores:
        threads = min(cores, _MOST_THREADS)
        if rows.device.type != "cpu" or threads == 1:
            yield from map(scores_of, rows.chunks(numbers, 0))
            return
        # Each thread has a chunk, and those that are done are taken in order.
        waiting: deque[Future[tuple[Array, Array, Array]]] = deque()
        with ThreadPoolExecutor(
            threads, "rin-scan", initializer=lambda: torch.set_num_threads(1)
        ) as pool:
            for chunk in rows.chunks(numbers, threads):
                waiting.append(pool.submit(scores_of, chunk))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Let each operator of torch run in one thread; yield how many threads may run at once.

    For the whole process: MKL knows only one number, and threads that spin between two small
    operators take the cores from those that work.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield count
    finally:
        torch.set_num_threads(count)


def _some(stored: Stored, chosen: Array) -> Stored:
    def pick(values: Any) -> Any:
        if isinstance(values, torch.Tensor):
            return values[torch.from_numpy(chosen).to(values.device)]
        return values[chosen]

    return {name: pick(values) for name, values in stored.items()}
