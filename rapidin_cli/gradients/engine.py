"""A batch of examples in, their compressed gradients out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.compress.factors import FactorMaker
from rapidin_cli.gradients.compress.oporp import Oporp
from rapidin_cli.gradients.compress.tensorsketch import WIDE_SHARE, BlockSketch, block_sizes
from rapidin_cli.gradients.directions import Direction, LayerGradient
from rapidin_cli.gradients.layout import GradientRows, RowLayout
from rapidin_cli.gradients.passes import Batch, Compute, Passes, on_cpu
from rapidin_cli.gradients.scaling import divided
from rapidin_cli.gradients.spec import GradientSpec


class Maker(Protocol):
    """Compresses gradients, layer by layer, each layer divided by a norm."""

    layout: RowLayout
    numbers: int
    """Floats of a row that is being made."""

    def start(self, batch: int) -> None:
        """Begin with B new rows."""

    def add(self, number: int, x: torch.Tensor, d: Side, divisor: torch.Tensor | None) -> None:
        """Add one layer from its inputs and output gradients.

        Args:
            divisor: () what to divide by; None for each gradient's own norm.
        """

    def add_matrix(self, number: int, gradient: torch.Tensor, divisor: torch.Tensor | None) -> None:
        """Add one layer from its gradients themselves, (B, O, I)."""

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows (B, K) and the layers' norms (B, L)."""


QUERY_RANK = 16
"""Rank to which a query's direction is cut for the scan over factor rows."""

# Floats of directions that are made at a time.
_PROBED_NUMBERS = 2**24

Change = Callable[[int, LayerGradient], torch.Tensor]
"""Maps the gradients of a target to others, (B, O, I): a preconditioner."""


class GradientEngine:
    """Computes rows for batches on one device.

    Args:
        model: a causal LM whose trainable parameters `require_grad`.
        spec: what to compute.
        device: where the model is.
        compute: `bfloat16` runs the model under autocast and takes the sketches' products
            in bfloat16 (float32 accumulation); `float32` runs everything in float32.

    Attributes:
        passes: the model.
        layout: layers and blocks of the rows.
        skipped: trainable parameters that are not captured, with the reason.
    """

    def __init__(
        self, model: nn.Module, spec: GradientSpec, device: torch.device, compute: Compute
    ) -> None:
        linear = spec.capture == "linear"
        self.passes = Passes(model, spec.layers, device, compute, linear=linear)
        self.skipped = self.passes.skipped
        self._device = device
        targets = self.passes.targets
        dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
        self._maker: Maker
        if spec.row == "factors":
            self._maker = FactorMaker(targets, spec, device, spec.rank)
            # No layer's gradient has more components than its shorter side, such as a LoRA's rank.
            most = max(min(t.layer.out_features, t.layer.in_features) for t in targets)
            self._prober: Maker = FactorMaker(targets, spec, device, min(QUERY_RANK, most))
        else:
            oporp = spec.sketch == "oporp"
            self._maker = self._prober = (
                _OporpRows(targets, spec, device)
                if oporp
                else _TensorSketchRows(targets, spec, device, dtype)
            )
        self.layout = self._maker.layout

    def __call__(self, batch: Batch) -> GradientRows:
        """Return the rows of a batch, on the CPU, in the batch's order."""
        self._maker.start(len(batch.input_ids))
        losses = on_cpu(
            self.passes.backward(batch, lambda number, x, d: self._maker.add(number, x, d, None))
        )
        blocks, norm = self._maker.finish()
        return GradientRows(
            blocks.cpu(),
            norm.cpu(),
            torch.tensor([float(part.sum()) for part in losses]),
            torch.tensor([len(part) for part in losses]),
            [-part for part in losses],
        )

    def each_direction(
        self,
        passes: Passes,
        batch: Batch,
        divisors: torch.Tensor,
        sign: float = 1.0,
        change: Change | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield what cached rows are multiplied by for each labelled token, (W,) on the CPU.

        Args:
            passes: those of this engine, or their `exactly`.
            batch: one sequence.
            divisors: (L,) what each layer is divided by, 0 for a layer that does not count:
                tokens are divided by the norms of their whole query, so that their
                directions add up to its direction.
            sign: factor of the losses.
            change: applied to the gradients before they are compressed.
        """
        divisors = divisors.to(self._device)

        def consume(number: int, x: torch.Tensor, d: Side) -> None:
            if change is None:
                self._prober.add(number, x * sign, d, divisors[number])
            else:
                gradient = change(number, LayerGradient.of(x * sign, d))
                self._prober.add_matrix(number, gradient, divisors[number])

        self._prober.start(1)
        for _ in passes.each_token(batch, consume):
            yield self._prober.finish()[0][0].cpu()
            self._prober.start(1)

    def probe_matrices(
        self, gradients: Sequence[torch.Tensor], divisors: torch.Tensor
    ) -> torch.Tensor:
        """Do the same for n directions that exist, (n, O, I) for each layer: (n, W)."""
        divisors = divisors.to(self._device)
        count = len(gradients[0])
        step = max(1, _PROBED_NUMBERS // self._prober.numbers)
        rows = []
        for first in range(0, count, step):
            part = slice(first, first + step)
            self._prober.start(len(gradients[0][part]))
            for number, layer in enumerate(gradients):
                self._prober.add_matrix(number, layer[part], divisors[number])
            rows.append(self._prober.finish()[0].cpu())
        return torch.cat(rows)

    @property
    def direction_width(self) -> int:
        """W, the numbers of a direction."""
        return self._prober.layout.dimensions

    @property
    def sketches(self) -> list[BlockSketch]:
        """The sketch of each layer, where rows are made of them."""
        assert isinstance(self._maker, _TensorSketchRows)
        return self._maker.blocks

    def probe(self, gradients: Iterable[Direction], divisors: torch.Tensor) -> torch.Tensor:
        """Do the same for one direction that exists, layer by layer: (W,)."""
        divisors = divisors.to(self._device)
        self._prober.start(1)
        for number, gradient in enumerate(gradients):
            if isinstance(gradient, LayerGradient) and gradient.matrix is None:
                self._prober.add(number, gradient.x, gradient.d, divisors[number])
            else:
                self._prober.add_matrix(number, gradient.dense(), divisors[number])
        return self._prober.finish()[0][0].cpu()


class _TensorSketchRows:
    """One TensorSketch block per layer, side by side: a `Maker`."""

    def __init__(
        self, targets: list[Target], spec: GradientSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers = tuple(target.layer for target in targets)
        try:
            shares = [WIDE_SHARE if t.wide and spec.capture == "all" else 1 for t in targets]
            sizes = block_sizes(spec.dimensions, [layer.size for layer in layers], shares)
        except ValueError as error:
            raise InputError(
                f"[gradient] {error}: each needs at least 16", hint="raise dimensions in rin.toml"
            ) from None
        self.layout = RowLayout(spec, layers, tuple(sizes))
        self.numbers = self.layout.dimensions
        self._device = device
        self.blocks = [
            BlockSketch(
                layer.name, layer.out_features, layer.in_features, size, spec.seed, device, dtype
            )
            for layer, size in zip(layers, sizes, strict=True)
        ]
        self._starts = [sum(sizes[:n]) for n in range(len(sizes))]

    def start(self, batch: int) -> None:
        self._rows = torch.zeros(batch, self.layout.dimensions, device=self._device)
        self._norms = torch.zeros(batch, len(self.blocks), device=self._device)

    def add(self, number: int, x: torch.Tensor, d: Side, divisor: torch.Tensor | None) -> None:
        self._put(number, *self.blocks[number](x, d), divisor)

    def add_matrix(self, number: int, gradient: torch.Tensor, divisor: torch.Tensor | None) -> None:
        self._put(number, *self.blocks[number].of_gradient(gradient), divisor)

    def _put(
        self, number: int, sketch: torch.Tensor, norm: torch.Tensor, divisor: torch.Tensor | None
    ) -> None:
        start = self._starts[number]
        self._rows[:, start : start + sketch.shape[1]] = divided(sketch, norm, divisor)
        self._norms[:, number] = norm

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rows, self._norms


class _OporpRows:
    """The paper's procedure over the concatenated, layer-normalised gradient."""

    def __init__(self, targets: list[Target], spec: GradientSpec, device: torch.device) -> None:
        layers = tuple(target.layer for target in targets)
        self.layout = RowLayout(spec, layers, (spec.dimensions,))
        self.numbers = self.layout.parameters
        self._device = device
        self._oporp = Oporp(self.layout.parameters, spec.dimensions, spec.rounds, spec.seed, device)
        self._starts = [sum(layer.size for layer in layers[:n]) for n in range(len(layers))]

    def start(self, batch: int) -> None:
        self._gradient = torch.zeros(batch, self.layout.parameters, device=self._device)
        self._norms = torch.zeros(batch, len(self.layout.layers), device=self._device)

    def add(self, number: int, x: torch.Tensor, d: Side, divisor: torch.Tensor | None) -> None:
        self.add_matrix(number, LayerGradient.of(x, d).dense(), divisor)

    def add_matrix(self, number: int, gradient: torch.Tensor, divisor: torch.Tensor | None) -> None:
        gradient = gradient.flatten(1)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        start = self._starts[number]
        self._gradient[:, start : start + gradient.shape[1]] = divided(gradient, norm, divisor)
        self._norms[:, number] = norm

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        # One at a time: the shuffles copy the whole gradient forty times.
        rows = [self._oporp(self._gradient[n : n + 1]) for n in range(len(self._gradient))]
        del self._gradient
        return torch.cat(rows), self._norms
