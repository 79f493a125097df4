"""EK-FAC: the curvature of a checkpoint, one Kronecker-factored block for each layer.

The Fisher block of a layer is taken as diagonal in the basis Q_S (x) Q_A, where the columns
of Q_A and Q_S are the eigenvectors of the second moments of the layer's inputs and of its
output gradients (K-FAC, Martens & Grosse 2015), and its diagonal as the second moments of the
examples' gradients in that basis (George et al. 2018, arXiv 1806.03884). Grosse et al. 2023
(arXiv 2308.03296) brought it to influence functions of language models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from rapidin_cli.gradients.capture import Consumer
from rapidin_cli.gradients.passes import Batch, Passes

MAX_SIDE = 4096
"""A longer side keeps its own axes: its eigenvectors would cost more than the layer."""

# Numbers of gradients that are formed at a time, 4 bytes each.
_KEPT_NUMBERS = 2**27


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


class Collector:
    """Gathers sums over batches: first for the bases, then for the eigenvalues.

    Several may share the batches; their sums are added up.

    Args:
        passes: the model.
        sampled: draw labels from the model's own predictions, as the Fisher matrix is
            defined, in place of those of the data (the empirical Fisher).
        progress: called with how many examples of a batch are done.
    """

    def __init__(
        self, passes: Passes, *, sampled: bool, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        self._passes = passes
        self._generator = torch.Generator(passes.device) if sampled else None
        self._progress = progress
        self._sides = [(t.layer.in_features, t.layer.out_features) for t in passes.targets]

    def moments(self, batches: Numbered) -> list[Pair]:
        """Return the sums of x x^T (I, I) and of d d^T (O, O) over tokens, (0, 0) if too long."""
        device = self._passes.device
        moments = [(_moment(i, device), _moment(o, device)) for i, o in self._sides]

        def consume(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
            x, d = x.float().flatten(0, 1), d.float().flatten(0, 1)
            real = d.any(1)  # no padding
            for total, vectors in zip(moments[number], (x[real], d[real]), strict=True):
                if len(total):
                    total += vectors.T @ vectors

        self._run(batches, consume, 0)
        return moments

    def values(self, bases: Sequence[Pair], batches: Numbered) -> list[torch.Tensor]:
        """Return the sums of the squares of the examples' gradients in these bases, (O, I)."""
        values = [torch.zeros(o, i, device=self._passes.device) for i, o in self._sides]

        def consume(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
            size = max(1, _KEPT_NUMBERS // values[number].numel())
            for part in zip(x.float().split(size), d.float().split(size), strict=True):
                values[number] += _gradients(*part, *bases[number]).square_().sum(0)

        self._run(batches, consume, 1)
        return values

    def _run(self, batches: Numbered, consume: Consumer, turn: int) -> None:
        for number, batch in batches:
            if self._generator is not None:
                self._generator.manual_seed(2 * number + turn)
            self._passes.backward(batch, consume, sampler=self._generator)
            self._progress(len(batch.input_ids))


def collect(
    passes: Passes,
    batches: Sequence[Batch],
    *,
    sampled: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> list[LayerCurvature]:
    """Go over the examples twice on one device: for the bases, then for the eigenvalues.

    Args: see `Collector`.
    """
    collector = Collector(passes, sampled=sampled, progress=progress)
    bases = [eigenvectors(pair) for pair in collector.moments(enumerate(batches))]
    values = collector.values(bases, enumerate(batches))
    return layers_of(bases, values, sum(len(batch.input_ids) for batch in batches))


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


def layers_of(
    bases: Sequence[Pair], values: Sequence[torch.Tensor], examples: int
) -> list[LayerCurvature]:
    """Return the curvature from the sums over this many examples."""
    pairs = zip(bases, values, strict=True)
    return [LayerCurvature(*basis, total / max(1, examples)) for basis, total in pairs]


def eigenvectors(moments: Pair) -> Pair:
    """Return the eigenvectors of both moments, in columns; (0, 0) for (0, 0)."""
    inputs, outputs = (
        torch.linalg.eigh(moment.double())[1].float() if len(moment) else moment
        for moment in moments
    )
    return inputs, outputs


def _moment(features: int, device: torch.device) -> torch.Tensor:
    size = features if features <= MAX_SIDE else 0
    return torch.zeros(size, size, device=device)
