"""What is captured: a trained matrix and the modules that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rapidin_cli.gradients.capture.uses import Use, VectorUse
from rapidin_cli.gradients.capture.wide import Formed, Side, WideSide
from rapidin_cli.gradients.layout import Layer

Kind = Literal["matrix", "wide", "vectors"]


@dataclass(frozen=True)
class Target:
    """A trained tensor whose gradient is captured, as an (O, I) matrix.

    Attributes:
        layer: its name and sides.
        uses: the modules that use it; the gradient is summed over all of them.
        parameters: what it is made of: one, or several vectors after one another.
        calls: how often one forward pass uses it; 0 if that is not counted.
        kind: `matrix`, of a linear layer; `wide`, with a side for each word of a vocabulary;
            `vectors`, all norms and biases as one (O, 1) matrix.
        transposed: whether the parameter is (I, O), as of Hugging Face's Conv1D.
    """

    layer: Layer
    uses: tuple[Use, ...]
    parameters: tuple[nn.Parameter, ...]
    calls: int = 0
    kind: Kind = "matrix"
    transposed: bool = False

    def gathered(self, of: Callable[[nn.Parameter], torch.Tensor]) -> torch.Tensor:
        """Return as (O, I) what `of` says of the parameters, in their shapes."""
        if self.kind == "vectors":
            return torch.cat([of(parameter).flatten() for parameter in self.parameters])[:, None]
        values = of(self.parameters[0])
        return values.T if self.transposed else values

    @property
    def own_axes(self) -> bool:
        """Whether the output side's curvature is taken in its own axes, one for each word."""
        return self.kind != "matrix"

    def nothing(self, like: torch.Tensor) -> tuple[torch.Tensor, Side]:
        """Return (x, d) of a zero gradient, for as many examples as `like` has."""
        count, layer = len(like), self.layer
        x = like.new_zeros(count, 1, layer.in_features)
        d = like.new_zeros(count, 1, layer.out_features)
        return x, WideSide(layer.out_features, Formed(d)) if self.kind == "wide" else d

    def merged(self, parts: Sequence[tuple[Use, torch.Tensor, Side]]) -> tuple[torch.Tensor, Side]:
        """Return (x, d) of several uses together."""
        if self.kind == "vectors":
            first = parts[0][1]
            whole = torch.zeros(len(first), 1, self.layer.out_features, device=first.device)
            for use, _, d in parts:
                assert isinstance(use, VectorUse)
                assert isinstance(d, torch.Tensor)
                whole[..., use.start : use.start + use.size] += d
            return first, whole
        sides = [d for _, _, d in parts]
        wide = [d for d in sides if isinstance(d, WideSide)]
        if wide:
            side, order = WideSide.merged(wide)
            return torch.cat([parts[n][1].float() for n in order], 1), side
        plain = [d for d in sides if isinstance(d, torch.Tensor)]
        return torch.cat([x for _, x, _ in parts], 1), torch.cat(plain, 1)


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
