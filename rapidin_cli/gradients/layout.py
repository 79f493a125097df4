"""What a row covers: layers, and how its numbers are divided among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from rapidin_cli.gradients.spec import GradientSpec


@dataclass(frozen=True)
class Layer:
    """A target matrix: its weight is (out_features, in_features) = (O, I)."""

    name: str
    out_features: int
    in_features: int

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return self.out_features * self.in_features


@dataclass(frozen=True)
class RowLayout:
    """Which layers a row covers and how its K numbers are divided among them.

    `blocks` has one size per layer, or a single one for `oporp`, which mixes all layers. A
    layer's block is its sketch, or its `rank` factors u and then v, each of `sides` numbers.
    """

    spec: GradientSpec
    layers: tuple[Layer, ...]
    blocks: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        """K, the numbers of a row."""
        return sum(self.blocks)

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a block of its own."""
        return len(self.blocks) == len(self.layers)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """For each layer, the numbers of a factor's output and input side."""
        most = self.spec.projection or max(max(n.out_features, n.in_features) for n in self.layers)
        return [(min(n.out_features, most), min(n.in_features, most)) for n in self.layers]

    def describe(self) -> str:
        """Describe in a few words what a row holds."""
        return f"{self.spec.describe()}; {self.dimensions:,} numbers"

    @property
    def parameters(self) -> int:
        """D: elements of the gradient that a row stands for."""
        return sum(layer.size for layer in self.layers)

    @classmethod
    def from_json(cls, spec: GradientSpec, stored: dict[str, Any]) -> RowLayout:
        """Read what `to_json` wrote."""
        return cls(spec, tuple(Layer(*item) for item in stored["layers"]), tuple(stored["blocks"]))

    def to_json(self) -> dict[str, Any]:
        """What the cache keeps beside its rows."""
        return {
            "layers": [
                [layer.name, layer.out_features, layer.in_features] for layer in self.layers
            ],
            "blocks": list(self.blocks),
        }


@dataclass
class GradientRows:
    """Gradients of a batch, compressed but not yet quantised.

    Attributes:
        blocks: (B, K) float32; each layer's block stands for its *normalised* gradient.
        norm: (B, L) float32, the true Frobenius norm of each layer's gradient.
        loss: (B,) float32, summed over the labelled tokens, nats.
        tokens: (B,) int32, number of labelled tokens.
        logprobs: for each example, the log-probability of each labelled token.
    """

    blocks: torch.Tensor
    norm: torch.Tensor
    loss: torch.Tensor
    tokens: torch.Tensor
    logprobs: list[torch.Tensor]


Array = np.ndarray[Any, Any]

Stored = Mapping[str, Array | torch.Tensor]
"""Arrays of n stored rows, on any device."""


class Products(Protocol):
    """Multiplies stored rows with some directions."""

    def __call__(self, stored: Stored, weights: torch.Tensor | None) -> torch.Tensor:
        """Return sum over layers of weights[n, l] <row_nl, direction_ql>, (n, Q) float32.

        Args:
            stored: arrays of n rows.
            weights: (n, L) float32, or None for all ones.
        """
