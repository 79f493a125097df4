"""Rows: what is stored of one example's gradient, and how it meets a query.

A row kind owns three things: the arrays of the store, the encoding of freshly computed
gradients into them, and the inner products of stored rows with query directions. The
store and the scorer only see this interface, so that a second kind can stand beside
`SketchRows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from rapidin_cli.gradients.spec import GradientSpec
from rapidin_storage import ArraySpec

Array = np.ndarray[Any, Any]


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

    `blocks` has one size per layer, or a single one for `oporp`, which mixes all layers.
    """

    spec: GradientSpec
    layers: tuple[Layer, ...]
    blocks: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        """K as it is."""
        return sum(self.blocks)

    @property
    def parameters(self) -> int:
        """D: elements of the gradient that a row stands for."""
        return sum(layer.size for layer in self.layers)

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
        blocks: (B, K) float32; each layer's block sketches the layer's *normalised* gradient.
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


class RowKind(Protocol):
    """How one kind of row is stored and scored."""

    layout: RowLayout

    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of the store, `digest` excepted."""

    def encode(self, rows: GradientRows) -> dict[str, Array]:
        """Turn a batch into store arrays of B rows."""

    def products(
        self, stored: dict[str, Array], directions: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return sum over layers of weights[n, l] <row_nl, direction_ql>, (n, Q) float32.

        Args:
            stored: arrays of n rows.
            directions: (Q, K) float32.
            weights: (n, L) float32, or None for all ones.
        """


class SketchRows:
    """Rows of K numbers, stored as int8, float16 or signs.

    Each block is first scaled by sqrt(k), so that small and large blocks have numbers of
    the same size and share one scale per row. `scale` turns stored numbers back.
    """

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self._sizes = torch.tensor(layout.blocks)
        self._root = torch.repeat_interleave(self._sizes.float().sqrt(), self._sizes)

    def arrays(self) -> dict[str, ArraySpec]:
        """See `RowKind.arrays`."""
        width = self.layout.dimensions
        sketch = {
            "int8": ArraySpec("int8", (width,)),
            "float16": ArraySpec("float16", (width,)),
            "sign": ArraySpec("uint8", (-(-width // 8),)),
        }[self.layout.spec.precision]
        return {
            "sketch": sketch,
            "scale": ArraySpec("float32"),
            "norm": ArraySpec("float32", (len(self.layout.layers),)),
            "loss": ArraySpec("float32"),
            "tokens": ArraySpec("int32"),
        }

    def encode(self, rows: GradientRows) -> dict[str, Array]:
        """See `RowKind.encode`."""
        values = rows.blocks.float() * self._root
        match self.layout.spec.precision:
            case "int8":
                scale = values.abs().amax(1) / 127
                safe = torch.where(scale > 0, scale, 1.0)
                sketch = torch.round(values / safe[:, None]).to(torch.int8).numpy()
            case "float16":
                scale = torch.ones(len(values))
                sketch = values.to(torch.float16).numpy()
            case "sign":
                # The scalar that brings +-1 nearest to the values in the least-squares sense.
                scale = values.abs().mean(1)
                sketch = np.packbits((values > 0).numpy(), axis=1)
        return {
            "sketch": sketch,
            "scale": scale.numpy(),
            "norm": rows.norm.float().numpy(),
            "loss": rows.loss.float().numpy(),
            "tokens": rows.tokens.to(torch.int32).numpy(),
        }

    def _values(self, stored: dict[str, Array]) -> torch.Tensor:
        sketch = stored["sketch"]
        if self.layout.spec.precision == "sign":
            bits = np.unpackbits(sketch, axis=1, count=self.layout.dimensions)
            values = torch.from_numpy(bits).float().mul_(2).sub_(1)
            if len(self.layout.blocks) == len(self.layout.layers):
                # A zero gradient has no signs: what was packed for it must not count.
                present = torch.from_numpy(stored["norm"] > 0).float()
                values *= torch.repeat_interleave(present, self._sizes, dim=1)
            return values
        return torch.from_numpy(sketch).float()

    def products(
        self, stored: dict[str, Array], directions: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """See `RowKind.products`."""
        values = self._values(stored)
        if weights is not None:
            values *= torch.repeat_interleave(weights, self._sizes, dim=1)
        products = values @ (directions / self._root).T
        return products * torch.from_numpy(stored["scale"])[:, None]


def row_kind(layout: RowLayout) -> RowKind:
    """Return the row kind of a layout."""
    return {"sketch": SketchRows}[layout.spec.row](layout)
