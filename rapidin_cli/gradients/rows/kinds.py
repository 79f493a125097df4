"""Rows: what is stored of one example's gradient, and how it is scored against a query.

A row kind owns three things: the arrays of the store, the encoding of freshly computed
gradients into them, and the inner products of stored rows with query directions. The
store and the scorer only see this interface.
"""

from typing import Protocol

import numpy as np
import torch

from rapidin_cli.gradients.layout import Array, GradientRows, Products, RowLayout
from rapidin_cli.gradients.rows.factor_products import FactorProducts
from rapidin_cli.gradients.rows.sketch_products import SketchProducts
from rapidin_storage import ArraySpec

_CPU = torch.device("cpu")


class RowKind(Protocol):
    """How one kind of row is stored and scored."""

    layout: RowLayout

    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of the store, `digest` excepted."""

    def encode(self, rows: GradientRows) -> dict[str, Array]:
        """Turn a batch into store arrays of B rows."""

    scored: tuple[str, ...]
    """Names of the arrays that `products` reads."""

    def products(
        self, directions: torch.Tensor, device: torch.device = _CPU, count: int | None = None
    ) -> Products:
        """Return what multiplies stored rows with directions.

        Args:
            directions: (Q, W) float32, what `GradientEngine.probe` returned.
            device: where the products are computed.
            count: how many rows the cache has; None if they are many.
        """


class SketchRows:
    """Rows of K numbers, stored as int8, float16 or signs.

    Each block is first scaled by sqrt(k), so that small and large blocks have numbers of
    the same size and share one scale per row. `scale` turns stored numbers back.
    """

    scored: tuple[str, ...] = ("norm", "scale", "sketch")

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
        return {"sketch": sketch, "scale": ArraySpec("float32"), **_common_arrays(self.layout)}

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
            case other:
                raise ValueError(f"sketch rows do not support precision {other}")
        return {"sketch": sketch, "scale": scale.numpy(), **_common_values(rows)}

    def values(self, stored: dict[str, Array]) -> torch.Tensor:
        """Return the blocks of stored rows, (n, K) float32, as they were before encoding."""
        scale = torch.from_numpy(stored["scale"])[:, None]
        return self._values(stored).mul_(scale).div_(self._root)

    def _values(self, stored: dict[str, Array]) -> torch.Tensor:
        sketch = stored["sketch"]
        if self.layout.spec.precision == "sign":
            bits = np.unpackbits(sketch, axis=1, count=self.layout.dimensions)
            values = torch.from_numpy(bits).float().mul_(2).sub_(1)
            if self.layout.per_layer:
                # A zero gradient has no signs: what was packed for it must not count.
                present = torch.from_numpy(stored["norm"] > 0).float()
                values *= torch.repeat_interleave(present, self._sizes, dim=1)
            return values
        return torch.from_numpy(sketch).float()

    def products(
        self, directions: torch.Tensor, device: torch.device = _CPU, count: int | None = None
    ) -> Products:
        """See `RowKind.products`."""
        size = None if count is None else count * self.arrays()["sketch"].row_bytes
        return SketchProducts(self.layout, directions / self._root, device, size)


class FactorRows:
    """Rows of `rank` factor pairs a layer, in 4 or 8 bits or float16.

    Each u and each v is quantised by its own largest number; `scale`, one for each pair,
    turns the product of both back.
    """

    scored: tuple[str, ...] = ("factors", "norm", "scale")

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self._rank = rank = layout.spec.rank
        lengths = [
            length for out, inner in layout.sides for length in [out] * rank + [inner] * rank
        ]
        self._lengths = np.array(lengths)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        # Which of the lengths are u, (L * c,), and which v.
        both = np.arange(len(lengths)).reshape(len(layout.layers), 2, rank)
        self._left, self._right = both[:, 0].ravel(), both[:, 1].ravel()

    def arrays(self) -> dict[str, ArraySpec]:
        """See `RowKind.arrays`."""
        width = self.layout.dimensions
        factors = {
            "int8": ArraySpec("int8", (width,)),
            "float16": ArraySpec("float16", (width,)),
            "int4": ArraySpec("uint8", (-(-width // 2),)),
        }[self.layout.spec.precision]
        return {
            "factors": factors,
            "scale": ArraySpec("float32", (len(self._left),)),
            **_common_arrays(self.layout),
        }

    def encode(self, rows: GradientRows) -> dict[str, Array]:
        """See `RowKind.encode`."""
        values = rows.blocks.float().numpy()
        largest = np.maximum.reduceat(np.abs(values), self._starts, axis=1)
        top = {"int8": 127.0, "int4": 7.0, "float16": 1.0}[self.layout.spec.precision]
        step = np.where(largest > 0, largest, 1) / np.float32(top)
        values = values / np.repeat(step, self._lengths, axis=1)
        match self.layout.spec.precision:
            case "int8":
                factors = np.rint(values).astype(np.int8)
            case "float16":
                factors = values.astype(np.float16)
            case _:
                factors = _pack_nibbles(np.rint(values).astype(np.int8))
        scale = (step[:, self._left] * step[:, self._right]).astype(np.float32)
        return {"factors": factors, "scale": scale, **_common_values(rows)}

    def products(
        self, directions: torch.Tensor, device: torch.device = _CPU, count: int | None = None
    ) -> Products:
        """See `RowKind.products`."""
        del count
        return FactorProducts(self.layout, directions, device)


def _pack_nibbles(values: Array) -> Array:
    """Two numbers from -8 to 7 a byte, the first in the low half: (n, W) -> (n, ceil(W / 2))."""
    even = values if values.shape[1] % 2 == 0 else np.pad(values, ((0, 0), (0, 1)))
    bits = (even & 15).astype(np.uint8)
    packed: Array = bits[:, ::2] | (bits[:, 1::2] << 4)
    return packed


def _common_arrays(layout: RowLayout) -> dict[str, ArraySpec]:
    return {
        "norm": ArraySpec("float32", (len(layout.layers),)),
        "loss": ArraySpec("float32"),
        "tokens": ArraySpec("int32"),
    }


def _common_values(rows: GradientRows) -> dict[str, Array]:
    return {
        "norm": rows.norm.float().numpy(),
        "loss": rows.loss.float().numpy(),
        "tokens": rows.tokens.to(torch.int32).numpy(),
    }


def row_kind(layout: RowLayout) -> RowKind:
    """Return the row kind of a layout."""
    return FactorRows(layout) if layout.spec.row == "factors" else SketchRows(layout)
