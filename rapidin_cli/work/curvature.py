"""Curvature over devices: each goes over its share of the batches, and the sums are added."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.examples import Dataset, Example, plan_batches
from rapidin_cli.gradients.curvature import (
    DECOMPOSITIONS,
    FIRST_PASS,
    SECOND_PASS,
    CollectedLayers,
    Collector,
    LayerCurvature,
    Pair,
    Pairs,
    collect,
    eigenvectors,
)
from rapidin_cli.gradients.memory import batch_bytes, batch_limit
from rapidin_cli.gradients.passes import Passes, as_batch
from rapidin_cli.gradients.scratch import Scratch
from rapidin_cli.gradients.stored_curvature import CollectedCurvature
from rapidin_cli.output.stages import StageProgress
from rapidin_cli.work.processes import Member
from rapidin_cli.work.worker import Job, Ready, WorkerError, build_engine

Array = np.ndarray[Any, Any]

_LOADING = "loading the model"
_HERE = torch.device("cpu")


def collect_curvature(
    jobs: Sequence[Job],
    dataset: Dataset,
    *,
    rows: int,
    sampled: bool,
    batch_tokens: int,
    folder: Path | None = None,
    progress: StageProgress = lambda *_: None,
) -> CollectedCurvature:
    """Collect the curvature of a checkpoint on its data.

    Args:
        jobs: one for each worker; a single one works in this process.
        rows: distinct examples to take, spread by their digests; 0 for all.
        sampled: see `Collector`.
        batch_tokens: padded tokens of a batch; fewer if they would not fit in memory.
        folder: where large sums are, and where a single worker looks for those of a run that
            was cut off. It must be of this checkpoint alone.
        progress: called with (stage, done, all).

    Raises:
        WorkerError: a worker died or reported an error.
    """
    distinct = [same[0] for _, same in sorted(dataset.by_digest.items())]
    examples = distinct[:rows] if rows else distinct
    plan = plan_batches(examples, (), batch_tokens)
    if len(jobs) == 1:
        layers = _collect_here(jobs[0], plan, sampled, folder, progress)
    else:
        pool = _Pool(jobs, len(examples), folder, progress)
        try:
            layers = pool.collect(plan, sampled)
        finally:
            pool.close()
    return CollectedCurvature(layers, Dataset(examples).digest, len(examples))


def _collect_here(
    job: Job,
    plan: Sequence[Sequence[Example]],
    sampled: bool,
    folder: Path | None,
    progress: StageProgress,
) -> Sequence[LayerCurvature]:
    from rapidin_cli.gradients.partial_curvature import PartialCurvature

    progress(_LOADING, 0, 0)
    passes = build_engine(job).passes
    kept = PartialCurvature(folder, _key(passes, plan, sampled)) if folder else None
    return collect(
        passes,
        [as_batch(batch) for batch in plan],
        sampled=sampled,
        limit=_limit(passes),
        kept=kept,
        folder=folder,
        progress=progress,
    )


def _limit(passes: Passes) -> int:
    """Return how many padded tokens a batch may have; of a longer row less is kept."""
    passes.keeps = batch_limit(passes.device, batch_bytes(passes))
    return passes.keeps


def _key(passes: Passes, plan: Sequence[Sequence[Example]], sampled: bool) -> str:
    """Name the sums over these batches, in this order, in this arithmetic."""
    layers = [(t.layer.name, t.layer.out_features, t.layer.in_features) for t in passes.targets]
    total = hashlib.sha256(json.dumps(["rin sums 1", passes.compute, sampled, layers]).encode())
    for batch in plan:
        total.update(len(batch).to_bytes(8, "little"))
        for example in batch:
            total.update(example.digest)
    return total.hexdigest()


class _Pool:
    """Workers that go through the same phases: moments, bases, values.

    Matrices travel one layer at a time: all of them, from all workers, may be more than the
    machine's memory.
    """

    def __init__(
        self, jobs: Sequence[Job], examples: int, folder: Path | None, progress: StageProgress
    ) -> None:
        self._progress = progress
        self._examples = examples
        self._folder = folder
        progress(_LOADING, 0, 0)
        self._members = [Member(job, _serve) for job in jobs]

    def collect(self, plan: Sequence[Sequence[Example]], sampled: bool) -> Sequence[LayerCurvature]:
        """Do the same as `gradients.curvature.collect`."""
        count = len(self._members)
        ready = [member.wait_ready() for member in self._members]
        watched = ready[0].layout.layers
        layers = len(watched)
        numbered = list(enumerate(plan))
        for place, member in enumerate(self._members):
            share = numbered[place::count]
            self._send(member, (sampled, self._folder, share, len(range(place, layers, count))))
        sides = [(layer.in_features, layer.out_features) for layer in watched]
        pairs = Pairs(sides, _HERE, self._folder)
        for number, parts in enumerate(self._by_layer(layers, FIRST_PASS)):
            pairs.put(number, _tensors(_sums(parts)))
        # Decompositions cost as much as a pass where layers are wide: a share for each.
        for start in range(0, layers, count):
            self._progress(DECOMPOSITIONS, start, layers)
            chosen = range(start, min(start + count, layers))
            for member, number in zip(self._members, chosen, strict=False):
                self._send(member, _arrays(pairs.get(number)))
            for member, number in zip(self._members, chosen, strict=False):
                pairs.put(number, _tensors(self._receive(member)))
        for number in range(layers):
            pair = _arrays(pairs.get(number))
            for member in self._members:
                self._send(member, pair)
        values = Scratch([(o, i) for i, o in sides], _HERE, self._folder)
        for number, parts in enumerate(self._by_layer(layers, SECOND_PASS)):
            values.tensors[number].copy_(torch.from_numpy(_sum(parts)))
            values.used(number)
        return CollectedLayers(pairs, values, self._examples)

    def _by_layer(self, layers: int, stage: str) -> Iterator[list[Any]]:
        """Yield for each layer what all workers say, once they have gone over their shares."""
        yield self._first_answers(stage)
        for _ in range(1, layers):
            yield [self._receive(member) for member in self._members]

    def _first_answers(self, stage: str) -> list[Any]:
        """Pass on how far the workers are, until each has said something else."""
        from multiprocessing.connection import wait

        answers: dict[int, Any] = {}
        passed = 0
        self._progress(stage, passed, self._examples)
        while len(answers) < len(self._members):
            waiting = {n: m for n, m in enumerate(self._members) if n not in answers}
            ready = wait([member.connection for member in waiting.values()])
            for place, member in waiting.items():
                if member.connection in ready:
                    match self._receive(member):
                        case int(more):
                            passed += more
                            self._progress(stage, passed, self._examples)
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
    sampled, folder, share, decompositions = connection.recv()
    batches = [(number, as_batch(examples)) for number, examples in share]
    limit = _limit(engine.passes)
    collector = Collector(engine.passes, sampled=sampled, limit=limit, folder=folder)
    pairs = collector.no_moments()
    for more in collector.moments(pairs, batches):
        connection.send(more)
    for number in range(len(pairs)):
        connection.send(_arrays(pairs.get(number)))
    device = engine.passes.device
    for _ in range(decompositions):
        connection.send(_arrays(eigenvectors(_tensors(connection.recv(), device))))
    for number in range(len(pairs)):
        pairs.put(number, _tensors(connection.recv(), device))
    values = collector.no_values()
    for more in collector.values(pairs, values, batches):
        connection.send(more)
    for number, value in enumerate(values.tensors):
        connection.send(value.cpu().numpy())
        values.used(number)


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
