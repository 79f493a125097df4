"""Gradient work on a Ray cluster: an actor for each GPU (or CPU worker), with its own model.

Placement, restarts and retries are Ray's; what is done is committed by the driver, as with
local processes.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from rapidin_cli.errors import RinError, no_memory, out_of_memory
from rapidin_cli.workers import MAX_DEATHS, Arrays, Job, Poison, Ready, Tokens, Worker, WorkerError

# Batches that an actor has at once: one to work on, one to go on with.
_AHEAD = 2
_GONE = ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError


class _Actor:
    """The far side: a worker and where it is."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._place = ray.get_runtime_context().get_node_id()[:8]

    def ready(self) -> Ready:
        """Load the model, of which errors could not be told before; return what is known then."""
        self._worker = self._worker or Worker(self._job)
        return Ready(self._worker.engine.layout, self._worker.engine.skipped)

    def rows(self, tokens: Tokens) -> tuple[str, Arrays]:
        """Return where the rows of a batch were made, and the rows."""
        assert self._worker is not None
        ids, labels = tokens
        # Ray's memory is not writable, which torch does not like.
        return self._place, self._worker.rows((ids.copy(), labels.copy()))


class RayPool:
    """Actors on the cluster of RAY_ADDRESS, or on one that is started here.

    Args:
        jobs: one for each actor; their devices are what the cluster has. A single one stands
            for an actor on each GPU, or on each node where there is none.

    Attributes:
        ready: what is known once a model is loaded.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        cluster: Any = ray  # half of its functions have no types
        gpus = int(cluster.cluster_resources().get("GPU", 0))
        nodes = sum(node["Alive"] for node in cluster.nodes())
        # Each sees only the GPU that Ray gives it.
        count = len(jobs) if len(jobs) > 1 else gpus or nodes
        job = replace(jobs[0], device="cuda:0" if gpus else "cpu", threads=0 if gpus else 1)
        made = cluster.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1)(_Actor)
        self._actors = [made.remote(job) for _ in range(count)]
        try:
            self.ready: Ready = self._get(self._actors[0].ready.remote())
        except BaseException:
            self.close()
            raise

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, node, rows) as batches are done, in any order.

        An actor that dies is started again by Ray, where there is room, and its batches go to
        whoever is free; a batch on which three have died is yielded as `Poison`.

        Raises:
            RinError: an actor reported an error.
        """
        waiting = deque(range(len(batches)))
        deaths: Counter[int] = Counter()
        left = len(batches)
        # What each actor has been given, oldest first; a dead one has to say that it is back.
        given: list[deque[tuple[Any, int]]] = [deque() for _ in self._actors]
        absent: dict[Any, int] = {actor.ready.remote(): n for n, actor in enumerate(self._actors)}
        while left:
            for number, actor in enumerate(self._actors):
                while waiting and number not in absent.values() and len(given[number]) < _AHEAD:
                    batch = waiting.popleft()
                    given[number].append((actor.rows.remote(batches[batch]), batch))
            heads = {mine[0][0]: number for number, mine in enumerate(given) if mine}
            for result in ray.wait([*heads, *absent])[0]:
                number = heads[result] if result in heads else absent.pop(result)
                try:
                    found = self._get(result)
                except (
                    ray.exceptions.RayActorError,
                    ray.exceptions.ActorUnavailableError,
                ) as error:
                    absent[self._actors[number].ready.remote()] = number
                    lost = [batch for _, batch in given[number]]
                    given[number].clear()
                    # Only the first can be to blame; the other had not begun.
                    deaths.update(lost[:1])
                    waiting.extendleft(b for b in lost[::-1] if deaths[b] < MAX_DEATHS)
                    if lost and deaths[lost[0]] >= MAX_DEATHS:
                        left -= 1
                        yield lost[0], "", Poison(str(error).strip().splitlines()[0])
                    continue
                if result in heads:
                    left -= 1
                    yield given[number].popleft()[1], *found

    def _get(self, result: Any) -> Any:
        try:
            return ray.get(result)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RinError):
                raise error.cause from None
            if out_of_memory(error.cause):
                raise no_memory(error.cause) from None
            raise WorkerError(
                f"a worker on the cluster failed: {str(error.cause).splitlines()[0]}",
                hint=f"report this with the following\n{error}",
            ) from None

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        if self._mine:
            ray.shutdown()
