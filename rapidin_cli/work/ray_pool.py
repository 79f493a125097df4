"""Gradient work on a Ray cluster: an actor for each GPU (or CPU worker), with its own model.

Placement, restarts and retries are Ray's; what is done is committed by the driver, as with
local processes.
"""

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from rapidin_cli.errors import RinError, no_memory, out_of_memory
from rapidin_cli.work.worker import (
    MAX_DEATHS,
    Arrays,
    Job,
    Poison,
    Ready,
    Tokens,
    Worker,
    WorkerError,
    after,
)
from rapidin_storage import StorageError

# Batches that an actor has at once: one to work on, one to go on with.
_AHEAD = 2
# How often, a second apart, a lost actor may still be away, or fail to load its model.
_PATIENCE = 20
_ANSWERS_WITHIN = 10.0  # seconds


class _Actor:
    """The far side: a worker and where it is."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._place = ray.get_runtime_context().get_node_id()[:8]

    def ready(self) -> Ready:
        """Load the model, which may fail; return what is known then."""
        self._worker = self._worker or Worker(self._job)
        return self._worker.ready

    def rows(self, tokens: Tokens) -> tuple[str, Arrays]:
        """Return where the first rows of a batch were made, and those rows."""
        assert self._worker is not None
        ids, labels = tokens
        # Ray's memory is not writable, which torch does not like.
        return self._place, self._worker.part((ids.copy(), labels.copy()))


class RayPool:
    """Actors on the cluster of RAY_ADDRESS, or on one that is started here.

    Args:
        jobs: one for each actor; their devices are what the cluster has. A single one stands
            for an actor on each GPU, or on each node where there is none.

    Attributes:
        ready: what is known once a model is loaded.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._mine = connect()
        cluster: Any = ray  # half of its functions have no types
        gpus = int(cluster.cluster_resources().get("GPU", 0))
        nodes = sum(node["Alive"] for node in cluster.nodes())
        # Each sees only the GPU that Ray gives it.
        count = len(jobs) if len(jobs) > 1 else gpus or nodes
        # Another node may have a copy of the checkpoint: only here are its files the same ones.
        checkpoint = replace(jobs[0].checkpoint, stamps=())
        job = replace(
            jobs[0],
            checkpoint=checkpoint,
            device="cuda:0" if gpus else "cpu",
            threads=0 if gpus else 1,
        )
        made = cluster.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1)(_Actor)
        self._actors = [made.remote(job) for _ in range(count)]
        self._failures: Counter[int] = Counter()
        # Actors that have not said yet that they are there, by what they were asked.
        self._absent = {actor.ready.remote(): n for n, actor in enumerate(self._actors)}
        try:
            self.ready = self._first_ready()
        except BaseException:
            self.close()
            raise

    def _first_ready(self) -> Ready:
        """Wait for an actor that has loaded its model."""
        while True:
            result = ray.wait(list(self._absent))[0][0]
            number = self._absent.pop(result)
            try:
                first: Ready = result_of(result)
                first = replace(first, token_seconds=first.token_seconds / len(self._actors))
            except ray.exceptions.RayActorError as error:
                self._ask_again(number, error)
            else:
                return first

    def _ask_again(self, number: int, error: Exception) -> None:
        """Ask a lost actor, which Ray starts again where there is room, to load its model."""
        self._failures[number] += 1
        if self._failures[number] > _PATIENCE:
            raise WorkerError(
                f"a worker on the cluster keeps dying as it loads the model: {_first_line(error)}",
                hint="try it there by hand: rin cache --workers 1",
            )
        time.sleep(1)
        self._absent[self._actors[number].ready.remote()] = number

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, node, rows) as parts of batches are done; see `Pool`.

        An actor is asked for part after part. The batches of one that dies go to any free one; a
        batch on which three have died, without a part between, is yielded as `Poison`.

        Raises:
            RinError: an actor reported an error, or cannot be kept alive.
        """
        waiting = deque(range(len(batches)))
        deaths: Counter[int] = Counter()
        done: Counter[int] = Counter()  # rows of each batch
        left = len(batches)
        # What each actor has been given, oldest first.
        given: list[deque[tuple[Any, int]]] = [deque() for _ in self._actors]
        while left:
            for number, actor in enumerate(self._actors):
                present = number not in self._absent.values()
                while waiting and present and len(given[number]) < _AHEAD:
                    batch = waiting.popleft()
                    rest = after(batches[batch], done[batch])
                    given[number].append((actor.rows.remote(rest), batch))
            working = {mine[0][0]: number for number, mine in enumerate(given) if mine}
            result = ray.wait([*working, *self._absent])[0][0]
            number = working[result] if result in working else self._absent.pop(result)
            try:
                found = result_of(result)
            except ray.exceptions.RayActorError as error:
                lost = [batch for _, batch in given[number]]
                given[number].clear()
                # Only the first can be to blame; the other had not begun.
                deaths.update(lost[:1])
                waiting.extendleft(b for b in lost[::-1] if deaths[b] < MAX_DEATHS)
                if lost and deaths[lost[0]] >= MAX_DEATHS:
                    left -= 1
                    yield lost[0], "", Poison(_first_line(error))
                self._ask_again(number, error)
                continue
            self._failures[number] = 0
            if result in working:
                batch, (node, rows) = given[number].popleft()[1], found
                del deaths[batch]
                done[batch] += len(rows["loss"])
                if done[batch] < len(batches[batch][0]):
                    waiting.appendleft(batch)
                else:
                    left -= 1
                yield batch, node, rows

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        if self._mine:
            ray.shutdown()


def connect() -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here; False if already connected.

    Raises:
        RinError: nothing listens there.
    """
    if ray.is_initialized():
        return False
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    return True


def result_of(reference: Any) -> Any:
    """Return the result of a task or an actor.

    Raises:
        RinError, StorageError: as it raised them.
        ray.exceptions.RayActorError: the actor died.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (RinError, StorageError)):
            raise error.cause from None
        if out_of_memory(error.cause):
            raise no_memory(error.cause) from None
        raise WorkerError(
            f"a worker on the cluster failed: {_first_line(error.cause)}",
            hint=f"report this, with the following:\n{error}",
        ) from None
    except ray.exceptions.WorkerCrashedError as error:
        raise WorkerError(
            f"processes on the cluster died every time they ran a task: {_first_line(error)}",
            hint="look for the reason in the cluster's logs: ray list tasks",
        ) from None


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        RinError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # none, or a word that Ray knows, such as `auto`
    try:
        socket.create_connection((host, int(port)), _ANSWERS_WITHIN).close()
    except OSError as error:
        raise RinError(
            f"there is no Ray cluster at {address}: {error.strerror or error}",
            hint="correct RAY_ADDRESS, or unset it to start a cluster here",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
