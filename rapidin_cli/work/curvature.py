"""Curvature over devices: each goes over its share of the batches, and the sums are added."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.examples import Dataset, Example, plan_batches
from rapidin_cli.gradients.curvature import (
    Collector,
    LayerCurvature,
    Pair,
    collect,
    eigenvectors,
    layers_of,
)
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.gradients.stored_curvature import CollectedCurvature
from rapidin_cli.work.processes import Member
from rapidin_cli.work.worker import Job, Ready, WorkerError, build_engine

Array = np.ndarray[Any, Any]


def collect_curvature(
    jobs: Sequence[Job],
    dataset: Dataset,
    *,
    rows: int,
    sampled: bool,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> CollectedCurvature:
    """Collect the curvature of a checkpoint on its data.

    Args:
        jobs: one for each worker.
        rows: distinct examples to take, spread by their digests; 0 for all.
        sampled: see `Collector`.
        batch_tokens: padded tokens of a batch.
        progress: called with (done, all); each example counts twice.

    Raises:
        WorkerError: a worker died or reported an error.
    """
    distinct = [same[0] for _, same in sorted(dataset.by_digest.items())]
    examples = distinct[:rows] if rows else distinct
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, 2 * len(examples))

    plan = plan_batches(examples, (), batch_tokens)
    layers = collect_on(jobs, plan, sampled=sampled, progress=advance)
    return CollectedCurvature(layers, Dataset(examples).digest, len(examples))


def collect_on(
    jobs: Sequence[Job],
    plan: Sequence[Sequence[Example]],
    *,
    sampled: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> list[LayerCurvature]:
    """Collect the curvature of a checkpoint from batches of examples.

    Args:
        jobs: one for each worker; a single one works in this process.
        plan: the batches.
        sampled, progress: see `Collector`.

    Raises:
        WorkerError: a worker died or reported an error.
    """
    if len(jobs) == 1:
        passes = build_engine(jobs[0]).passes
        batches = [as_batch(batch) for batch in plan]
        return collect(passes, batches, sampled=sampled, progress=progress)
    pool = _Pool(jobs, progress)
    try:
        return pool.collect(plan, sampled)
    finally:
        pool.close()


class _Pool:
    """Workers that go through the same phases: moments, bases, values.

    Matrices travel one layer at a time: all of them, from all workers, may be more than the
    machine's memory.
    """

    def __init__(self, jobs: Sequence[Job], progress: Callable[[int], None]) -> None:
        self._members = [Member(job, _serve) for job in jobs]
        self._progress = progress

    def collect(self, plan: Sequence[Sequence[Example]], sampled: bool) -> list[LayerCurvature]:
        """Do the same as `gradients.curvature.collect`."""
        count = len(self._members)
        ready = [member.wait_ready() for member in self._members]
        layers = len(ready[0].layout.layers)
        numbered = list(enumerate(plan))
        for place, member in enumerate(self._members):
            share = numbered[place::count]
            self._send(member, (sampled, share, len(range(place, layers, count))))
        pairs = [_sums(parts) for parts in self._by_layer(layers)]
        # Decompositions cost as much as a pass where layers are wide: a share for each.
        for start in range(0, layers, count):
            chosen = range(start, min(start + count, layers))
            for member, number in zip(self._members, chosen, strict=False):
                self._send(member, pairs[number])
            for member, number in zip(self._members, chosen, strict=False):
                pairs[number] = self._receive(member)
        for pair in pairs:
            for member in self._members:
                self._send(member, pair)
        values = [torch.from_numpy(_sum(parts)) for parts in self._by_layer(layers)]
        return layers_of([_tensors(pair) for pair in pairs], values, sum(map(len, plan)))

    def _by_layer(self, layers: int) -> Iterator[list[Any]]:
        """Yield for each layer what all workers say, once they have gone over their shares."""
        yield self._first_answers()
        for _ in range(1, layers):
            yield [self._receive(member) for member in self._members]

    def _first_answers(self) -> list[Any]:
        """Pass on how far the workers are, until each has said something else."""
        from multiprocessing.connection import wait

        answers: dict[int, Any] = {}
        while len(answers) < len(self._members):
            waiting = {n: m for n, m in enumerate(self._members) if n not in answers}
            ready = wait([member.connection for member in waiting.values()])
            for place, member in waiting.items():
                if member.connection in ready:
                    match self._receive(member):
                        case int(done):
                            self._progress(done)
                        case answer:
                            answers[place] = answer
        return [answers[place] for place in range(len(answers))]

    def _send(self, member: Member, message: Any) -> None:
        try:
            member.connection.send(message)
        except OSError:
            while True:  # until what it sent before it ended has been read
                self._receive(member)

    def _receive(self, member: Member) -> Any:
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            raise self._died(member) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _died(self, member: Member) -> WorkerError:
        return WorkerError(
            f"the worker on {member.job.device} died ({member.buried()}); no curvature was stored",
            hint="run rin curvature again with fewer --workers or a lower [cache] batch_tokens",
        )

    def close(self) -> None:
        """End all workers."""
        for member in self._members:
            member.stop()


def _serve(job: Job, connection: Connection) -> None:
    """Run in a worker: moments of its share, bases of some layers, values of its share."""
    engine = build_engine(job)
    connection.send(Ready(engine.layout, engine.skipped))
    sampled, share, decompositions = connection.recv()
    batches = [(number, as_batch(examples)) for number, examples in share]
    collector = Collector(engine.passes, sampled=sampled, progress=connection.send)
    for pair in collector.moments(batches):
        connection.send(_arrays(pair))
    device = engine.passes.device
    for _ in range(decompositions):
        connection.send(_arrays(eigenvectors(_tensors(connection.recv(), device))))
    bases = [_tensors(connection.recv(), device) for _ in engine.layout.layers]
    for values in collector.values(bases, batches):
        connection.send(values.cpu().numpy())


def _sum(parts: Sequence[Array]) -> Array:
    total: Array = np.sum(parts, axis=0)
    return total


def _sums(pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    inputs, outputs = zip(*pairs, strict=True)
    return _sum(inputs), _sum(outputs)


def _arrays(pair: Pair) -> tuple[Array, Array]:
    inputs, outputs = pair
    return inputs.cpu().numpy(), outputs.cpu().numpy()


def _tensors(pair: tuple[Array, Array], device: torch.device | str = "cpu") -> Pair:
    inputs, outputs = pair
    return torch.from_numpy(inputs).to(device), torch.from_numpy(outputs).to(device)
