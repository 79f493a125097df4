"""Curvature over devices: each goes over its share of the batches, and the sums are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rapidin_cli.gradients.curvature import (
    Collector,
    LayerCurvature,
    Pair,
    collect,
    eigenvectors,
    layers_of,
)
from rapidin_cli.influence.queries import as_batch
from rapidin_cli.workers import Job, Member, Ready, WorkerError, build_engine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rapidin_cli.data.examples import Example

Array = np.ndarray[Any, Any]


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
    crew = _Crew(jobs, progress)
    try:
        return crew.collect(plan, sampled)
    finally:
        crew.close()


class _Crew:
    """Several workers who go through the same three turns."""

    def __init__(self, jobs: Sequence[Job], progress: Callable[[int], None]) -> None:
        self._members = [Member(job, _serve) for job in jobs]
        self._progress = progress

    def collect(self, plan: Sequence[Sequence[Example]], sampled: bool) -> list[LayerCurvature]:
        numbered = list(enumerate(plan))
        count = len(self._members)
        for place, member in enumerate(self._members):
            member.wait_ready()
            member.connection.send((sampled, numbered[place::count]))
        moments = [tuple(map(_sum, zip(*parts, strict=True))) for parts in self._turn()]
        # Decompositions cost as much as a pass where layers are wide: a share for each.
        for place, member in enumerate(self._members):
            member.connection.send(moments[place::count])
        shares = self._answers()
        bases = [shares[n % count][n // count] for n in range(len(moments))]
        for member in self._members:
            member.connection.send(bases)
        values = [torch.from_numpy(_sum(parts)) for parts in self._turn()]
        tensors = [_tensors(pair) for pair in bases]
        return layers_of(tensors, values, sum(map(len, plan)))

    def _turn(self) -> Iterator[tuple[Any, ...]]:
        """Return for each layer what all workers say."""
        return zip(*self._answers(), strict=True)

    def _answers(self) -> list[Any]:
        """Wait until each worker has answered, passing on how far they are."""
        from multiprocessing.connection import wait

        answers: dict[int, Any] = {}
        while len(answers) < len(self._members):
            waiting = [m for n, m in enumerate(self._members) if n not in answers]
            ready = wait([member.connection for member in waiting])
            for place, member in enumerate(self._members):
                if member.connection not in ready:
                    continue
                match self._heard(member):
                    case int(done):
                        self._progress(done)
                    case answer:
                        answers[place] = answer
        return [answers[place] for place in range(len(answers))]

    def _heard(self, member: Member) -> Any:
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            raise WorkerError(
                f"the worker on {member.job.device} died ({member.buried()}); no curvature was "
                "stored",
                hint="rin curvature again, with fewer --workers or a lower [cache] batch_tokens",
            ) from None
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        for member in self._members:
            member.stop()


def _serve(job: Job, connection: Connection) -> None:
    """Run in a worker: moments of its share, bases of some layers, values of its share."""
    engine = build_engine(job)
    connection.send(Ready(engine.layout, engine.skipped))
    sampled, share = connection.recv()
    batches = [(number, as_batch(examples)) for number, examples in share]
    collector = Collector(engine.passes, sampled=sampled, progress=connection.send)
    connection.send([_arrays(pair) for pair in collector.moments(batches)])
    device = engine.passes.device
    connection.send([_arrays(eigenvectors(_tensors(pair, device))) for pair in connection.recv()])
    bases = [_tensors(pair, device) for pair in connection.recv()]
    connection.send([values.cpu().numpy() for values in collector.values(bases, batches)])


def _sum(parts: Sequence[Array]) -> Array:
    total: Array = np.sum(parts, axis=0)
    return total


def _arrays(pair: Pair) -> tuple[Array, Array]:
    inputs, outputs = pair
    return inputs.cpu().numpy(), outputs.cpu().numpy()


def _tensors(pair: tuple[Array, Array], device: torch.device | str = "cpu") -> Pair:
    inputs, outputs = pair
    return torch.from_numpy(inputs).to(device), torch.from_numpy(outputs).to(device)
