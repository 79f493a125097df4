"""EK-FAC: the curvature of a checkpoint, one Kronecker-factored block for each layer.

The Fisher block of a layer is taken as diagonal in the basis Q_S (x) Q_A, where the columns
of Q_A and Q_S are the eigenvectors of the second moments of the layer's inputs and of its
output gradients (K-FAC, Martens & Grosse 2015), and its diagonal as the second moments of the
examples' gradients in that basis (George et al. 2018, arXiv 1806.03884). Grosse et al. 2023
(arXiv 2308.03296) brought it to influence functions of language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from rapidin_cli.gradients.passes import Batch, Passes

MAX_SIDE = 4096
"""A longer side keeps its own axes: its eigenvectors would cost more than the layer."""


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


def collect(
    passes: Passes,
    batches: Iterable[Batch],
    again: Iterable[Batch],
    *,
    sampled: bool,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[LayerCurvature]:
    """Go over the examples twice: for the bases, then for the eigenvalues.

    Args:
        passes: the model.
        batches, again: the examples, and the same once more.
        sampled: draw labels from the model's own predictions, as the Fisher matrix is
            defined, in place of those of the data (the empirical Fisher).
        seed: of those draws.
        progress: is told how many examples of a batch are done.
    """
    generator = torch.Generator(passes.device).manual_seed(seed) if sampled else None
    sides = [(t.layer.in_features, t.layer.out_features) for t in passes.targets]
    device = passes.device
    moments = [tuple(_moment(n, device) for n in pair) for pair in sides]

    def first(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        x, d = x.float().flatten(0, 1), d.float().flatten(0, 1)
        real = d.any(1)  # no padding
        for total, vectors in zip(moments[number], (x[real], d[real]), strict=True):
            if len(total):
                total += vectors.T @ vectors

    for batch in batches:
        passes.backward(batch, first, sampler=generator)
        progress(len(batch.input_ids))
    bases = [tuple(_eigenvectors(total) for total in pair) for pair in moments]
    values = [torch.zeros(out, inner, device=device) for inner, out in sides]
    count = 0

    def second(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        inputs, outputs = bases[number]
        x, d = rotated(x.float(), inputs), rotated(d.float(), outputs)
        values[number] += (d.mT @ x).square_().sum(0)

    for batch in again:
        passes.backward(batch, second, sampler=generator)
        count += len(batch.input_ids)
        progress(len(batch.input_ids))
    return [
        LayerCurvature(inputs, outputs, total / max(1, count))
        for (inputs, outputs), total in zip(bases, values, strict=True)
    ]


def _moment(features: int, device: torch.device) -> torch.Tensor:
    size = features if features <= MAX_SIDE else 0
    return torch.zeros(size, size, device=device)


def _eigenvectors(moment: torch.Tensor) -> torch.Tensor:
    if not len(moment):
        return moment
    vectors: torch.Tensor = torch.linalg.eigh(moment.double())[1]
    return vectors.float()
