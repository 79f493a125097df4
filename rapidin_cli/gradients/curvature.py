"""EK-FAC: the curvature of a checkpoint, one Kronecker-factored block for each layer.

The Fisher block of a layer is taken as diagonal in the basis Q_S (x) Q_A, where the columns
of Q_A and Q_S are the eigenvectors of the second moments of the layer's inputs and of its
output gradients (K-FAC, Martens & Grosse 2015), and its diagonal as the second moments of the
examples' gradients in that basis (George et al. 2018, arXiv 1806.03884). Grosse et al. 2023
(arXiv 2308.03296) brought it to influence functions of language models.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rapidin_cli.errors import out_of_memory
from rapidin_cli.gradients.capture.sides import Side, WideSide
from rapidin_cli.gradients.capture.watching import Consumer
from rapidin_cli.gradients.memory import make_room, release_memory
from rapidin_cli.gradients.passes import Batch, Passes
from rapidin_cli.gradients.scratch import Scratch
from rapidin_cli.output.stages import StageProgress

MAX_SIDE = 4096
"""A longer side keeps its own axes: its eigenvectors would cost more than the layer."""

# Numbers of gradients that are formed at a time, 4 bytes each.
_KEPT_NUMBERS = {"cpu": 2**24, "cuda": 2**27}


@dataclass(frozen=True)
class LayerCurvature:
    """The curvature of one (O, I) weight.

    Attributes:
        inputs: (I, I) eigenvectors in columns, or (0, 0) for the unit matrix.
        outputs: (O, O) likewise.
        values: (O, I), E[(Q_S^T G Q_A)^2] over examples: the block's eigenvalues.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    values: torch.Tensor


def rotated(vectors: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return the coordinates of vectors (..., n) in a basis (n, n); (0, 0) is the unit matrix."""
    return vectors @ basis if len(basis) else vectors


Pair = tuple[torch.Tensor, torch.Tensor]
"""Of a layer's input side and of its output side."""

Numbered = Iterable[tuple[int, Batch]]
"""Batches with their numbers, which seed the draws of labels."""


FIRST_PASS, DECOMPOSITIONS, SECOND_PASS = "pass 1 of 2", "decompositions", "pass 2 of 2"


class Pairs(Scratch):
    """Moments, or bases: of each layer (I, I) and (O, O), or (0, 0) if too long.

    Args:
        sides: I and O of each layer.
    """

    def __init__(
        self, sides: Sequence[tuple[int, int]], device: torch.device, folder: Path | None = None
    ) -> None:
        sizes = [side if side <= MAX_SIDE else 0 for layer in sides for side in layer]
        super().__init__([(size, size) for size in sizes], device, folder)

    def __len__(self) -> int:
        return len(self.tensors) // 2

    def get(self, number: int) -> Pair:
        """Return those of a layer."""
        self.used(2 * number)
        self.used(2 * number + 1)
        return self.tensors[2 * number], self.tensors[2 * number + 1]

    def put(self, number: int, pair: Pair) -> None:
        """Take others of a layer."""
        for place, values in zip(self.get(number), pair, strict=True):
            place.copy_(values)


@dataclass
class Sums:
    """What a collection has so far; examples are counted in the order of the batches.

    Attributes:
        pairs: the layers' moments, and where those are decomposed their bases instead.
        values: sums of the gradients' squares.
        passed: examples that are in the moments.
        decomposed: layers, from the first on, that have bases.
        summed: examples that are in the values.
    """

    pairs: Pairs
    values: Scratch
    passed: int = 0
    decomposed: int = 0
    summed: int = 0


class Kept:
    """Where sums are safe while they are collected; this one keeps nothing."""

    def load(self, sums: Sums) -> None:
        """Fill in the sums of an earlier run that was cut off."""

    def save(self, sums: Sums, *, phase: bool = False) -> None:
        """Keep them, if the last time was a while ago or a phase is over."""


class Collector:
    """Gathers sums over batches: first for the bases, then for the eigenvalues.

    Several may share the batches; their sums are added up.

    Args:
        passes: the model.
        sampled: draw labels from the model's own predictions, as the Fisher matrix is
            defined, in place of those of the data (the empirical Fisher).
        limit: padded tokens that fit in memory; larger batches are cut. 0: any.
        folder: where sums are kept that are larger than memory should be.
    """

    def __init__(
        self, passes: Passes, *, sampled: bool, limit: int = 0, folder: Path | None = None
    ) -> None:
        self._passes = passes
        self._folder = folder
        self._generator = torch.Generator(passes.device) if sampled else None
        self._limit = limit
        self._targets = passes.targets
        self._sides = [(t.layer.in_features, t.layer.out_features) for t in passes.targets]

    def no_moments(self) -> Pairs:
        """Return moments of no example."""
        sides = [
            (i, MAX_SIDE + 1 if target.own_axes else o)
            for target, (i, o) in zip(self._targets, self._sides, strict=True)
        ]
        return Pairs(sides, self._passes.device, self._folder)

    def no_values(self) -> Scratch:
        """Return the squares of no example's gradients, (O, I)."""
        return Scratch([(o, i) for i, o in self._sides], self._passes.device, self._folder)

    def moments(self, totals: Pairs, batches: Numbered, skip: int = 0) -> Iterator[int]:
        """Add x x^T (I, I) and d d^T (O, O), summed over tokens, to `totals`.

        Yields how many examples were added, part by part; the first `skip` are left out.
        """

        def consume(number: int, x: torch.Tensor, d: Side) -> None:
            x = x.float().flatten(0, 1)
            # No padding; the output side of what is wide has no moments.
            d = x[:, :0] if isinstance(d, WideSide) else d.float().flatten(0, 1)
            real = d.any(1) if d.shape[1] else x.any(1)
            pairs = list(zip(totals.get(number), (x[real], d[real]), strict=True))
            # All or nothing: memory may run out on the way.
            sums = [(total, v.T @ v) for total, v in pairs if len(total)]
            for total, more in sums:
                total += more

        return self._run(batches, consume, 0, skip)

    def values(
        self, bases: Pairs, totals: Scratch, batches: Numbered, skip: int = 0
    ) -> Iterator[int]:
        """Add the squares of the examples' gradients in these bases, (O, I); see `moments`."""

        def consume(number: int, x: torch.Tensor, d: Side) -> None:
            total, basis = totals.tensors[number], bases.get(number)
            if isinstance(d, WideSide):
                _add_squares(total, rotated(x.float(), basis[0]), d)
                totals.used(number)
                return
            size = max(1, _KEPT_NUMBERS[x.device.type] // total.numel())
            more = torch.zeros_like(total)
            for part in zip(x.float().split(size), d.float().split(size), strict=True):
                more += _gradients(*part, *basis).square_().sum(0)
            total.add_(more)
            totals.used(number)

        return self._run(batches, consume, 1, skip)

    def _run(self, batches: Numbered, consume: Consumer, turn: int, skip: int) -> Iterator[int]:
        for number, batch in batches:
            rows, length = batch.input_ids.shape
            first = min(skip, rows)
            skip -= first
            while first < rows:
                most = max(1, self._limit // length) if self._limit else rows
                stop = min(rows, first + most)
                self._add(batch, first, stop, consume, 2 * number + turn, frozenset())
                yield stop - first
                first = stop

    def _add(
        self,
        batch: Batch,
        first: int,
        stop: int,
        consume: Consumer,
        seed: int,
        there: frozenset[int],
    ) -> None:
        """Go over some examples of a batch; in halves if there is no memory for them.

        Args:
            there: layers that have these examples already, from an attempt that failed.
        """
        reached = set(there)

        def once(number: int, x: torch.Tensor, d: Side) -> None:
            if number not in reached:
                consume(number, x, d)
                reached.add(number)

        make_room(self._passes)
        part = Batch(batch.input_ids[first:stop], batch.labels[first:stop])
        if self._generator is not None:
            self._generator.manual_seed(seed + (first << 32))
        try:
            self._passes.backward(part, once, sampler=self._generator)
            return
        except (MemoryError, RuntimeError) as error:
            if stop - first == 1 or not out_of_memory(error):
                raise
        release_memory()
        half = (stop - first) // 2
        self._limit = half * batch.input_ids.shape[1]
        for start, end in ((first, first + half), (first + half, stop)):
            self._add(batch, start, end, consume, seed, frozenset(reached))


def collect(
    passes: Passes,
    batches: Sequence[Batch],
    *,
    sampled: bool,
    limit: int = 0,
    kept: Kept | None = None,
    folder: Path | None = None,
    progress: StageProgress = lambda *_: None,
) -> Sequence[LayerCurvature]:
    """Go over the examples twice on one device: for the bases, then for the eigenvalues.

    Args:
        passes, sampled, limit, folder: see `Collector`.
        kept: where sums are safe meanwhile; it goes on from what it has.
        progress: called with each of the three stages.
    """
    kept = kept or Kept()
    collector = Collector(passes, sampled=sampled, limit=limit, folder=folder)
    sums = Sums(collector.no_moments(), collector.no_values())
    kept.load(sums)
    examples = sum(len(batch.input_ids) for batch in batches)
    if sums.passed < examples:
        progress(FIRST_PASS, sums.passed, examples)
    for more in collector.moments(sums.pairs, enumerate(batches), sums.passed):
        sums.passed += more
        progress(FIRST_PASS, sums.passed, examples)
        kept.save(sums, phase=sums.passed == examples)
    for number in range(sums.decomposed, len(sums.pairs)):
        progress(DECOMPOSITIONS, number, len(sums.pairs))
        sums.pairs.put(number, eigenvectors(sums.pairs.get(number)))
        sums.decomposed = number + 1
        kept.save(sums, phase=sums.decomposed == len(sums.pairs))
    progress(SECOND_PASS, sums.summed, examples)
    for more in collector.values(sums.pairs, sums.values, enumerate(batches), sums.summed):
        sums.summed += more
        progress(SECOND_PASS, sums.summed, examples)
        kept.save(sums, phase=sums.summed == examples)
    return CollectedLayers(sums.pairs, sums.values, examples)


def _add_squares(total: torch.Tensor, x: torch.Tensor, d: WideSide) -> None:
    """Add the squares of gradients d^T x (V, I) of each example, some words at a time."""
    whole = torch.zeros_like(total)
    for row in range(len(x)):
        some = slice(row, row + 1)
        for where, made in d.pick(some).gradients(x[some]):
            whole[where] += made[0].square_()
    total.add_(whole)


def _gradients(
    x: torch.Tensor, d: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor
) -> torch.Tensor:
    """Return Q_S^T (d^T x) Q_A, (B, O, I) from (B, T, O) and (B, T, I).

    What has fewer rows is turned, tokens or gradients: of a LoRA matrix, the gradients.
    """
    tokens, out, inner = x.shape[1], d.shape[2], x.shape[2]
    if tokens <= out:
        x = rotated(x, inputs)
    if tokens <= inner:
        d = rotated(d, outputs)
    gradients = d.mT @ x
    if tokens > out:
        gradients = rotated(gradients, inputs)
    if tokens > inner:
        gradients = rotated(gradients.mT, outputs).mT
    return gradients


class CollectedLayers(Sequence[LayerCurvature]):
    """The curvature of all layers, from the sums over this many examples."""

    def __init__(self, bases: Pairs, values: Scratch, examples: int) -> None:
        self._bases = bases
        self._values = values
        self._examples = max(1, examples)

    def __len__(self) -> int:
        return len(self._bases)

    def __getitem__(self, number: Any) -> Any:
        self._values.used(number)
        values = self._values.tensors[number] / self._examples
        return LayerCurvature(*self._bases.get(number), values)


def eigenvectors(moments: Pair) -> Pair:
    """Return the eigenvectors of both moments, in columns; (0, 0) for (0, 0)."""
    inputs, outputs = (
        torch.linalg.eigh(moment.double())[1].float() if len(moment) else moment
        for moment in moments
    )
    return inputs, outputs
