"""What is captured: a trained matrix and the modules that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rapidin_cli.gradients.capture.blocks import BlocksSide
from rapidin_cli.gradients.capture.handed import HandedUse, gathered
from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.uses import Kind, Part, Use
from rapidin_cli.gradients.capture.wide import Formed, WordsSide
from rapidin_cli.gradients.layout import Layer


@dataclass(frozen=True)
class Target:
    """A trained tensor whose gradient is captured, as an (O, I) matrix.

    Attributes:
        layer: its name and sides.
        uses: the modules that use it; the gradient is summed over all of them.
        parameters: what it is made of: one, or several vectors after one another.
        calls: how often one forward pass uses it; 0 if that is not counted.
        kind: `matrix`, of a linear layer; `wide`, with an output for each word of a vocabulary;
            `experts`, E matrices one below the other; `vectors`, all norms and biases as one
            (O, 1) matrix.
        transposed: whether the parameter is (I, O), as of Hugging Face's Conv1D, or (E, I, O).
        handed: how functions are given it, where no module is a layer of its own.
        count: E, of experts.
    """

    layer: Layer
    uses: tuple[Use, ...]
    parameters: tuple[nn.Parameter, ...]
    calls: int = 0
    kind: Kind = "matrix"
    transposed: bool = False
    handed: tuple[tuple[nn.Parameter, HandedUse], ...] = ()
    count: int = 1

    def gathered(self, of: Callable[[nn.Parameter], torch.Tensor]) -> torch.Tensor:
        """Return as (O, I) what `of` says of the parameters, in their shapes."""
        if self.kind == "vectors":
            return torch.cat([of(parameter).flatten() for parameter in self.parameters])[:, None]
        values = of(self.parameters[0])
        values = values.mT if self.transposed else values
        return values.flatten(0, 1) if self.kind == "experts" else values

    @property
    def wide(self) -> bool:
        """Whether d is never formed whole."""
        return self.kind in ("wide", "experts")

    @property
    def own_axes(self) -> bool:
        """Whether the output side's curvature is taken in its own axes, one for each word."""
        return self.kind != "matrix"

    def nothing(self, like: torch.Tensor) -> tuple[torch.Tensor, Side]:
        """Return (x, d) of a zero gradient, for as many examples as `like` has."""
        count, layer = len(like), self.layer
        x = like.new_zeros(count, 1, layer.in_features)
        if self.kind == "experts":
            blocks = torch.zeros(count, 1, dtype=torch.long, device=like.device)
            d = like.new_zeros(count, 1, layer.out_features // self.count)
            return x, BlocksSide(d, blocks, self.count)
        d = like.new_zeros(count, 1, layer.out_features)
        return x, WordsSide(layer.out_features, Formed(d)) if self.kind == "wide" else d

    def merged(self, parts: Sequence[Part], batch: int) -> tuple[torch.Tensor, Side]:
        """Return (x, d) of several parts together."""
        first = parts[0].x
        if self.kind == "experts":
            return gathered(parts, batch, self.count)
        if self.kind == "vectors":
            whole = torch.zeros(batch, 1, self.layer.out_features, device=first.device)
            for part in parts:
                assert isinstance(part.d, torch.Tensor)
                whole[..., part.start : part.start + part.d.shape[2]] += part.d
            return first, whole
        wide = [part.d for part in parts if isinstance(part.d, WordsSide)]
        if wide:
            side, order = WordsSide.merged(wide)
            return torch.cat([parts[n].x.float() for n in order], 1), side
        plain = [part.d for part in parts if isinstance(part.d, torch.Tensor)]
        return torch.cat([part.x for part in parts], 1), torch.cat(plain, 1)


@dataclass(frozen=True)
class Skipped:
    """A trainable parameter whose gradient is not captured.

    Attributes:
        reason: why.
        size: how many numbers it has.
        chosen: whether the user's `layers` leaves it out.
    """

    name: str
    reason: str
    size: int
    chosen: bool = False
