"""TensorSketch of a layer's gradient, from its inputs and output gradients.

The gradient of an (O, I) weight is G = sum_t d_t x_t^T. With a hash and a sign for each
side, TensorSketch (Pham & Pagh, KDD 2013) puts element (o, i), signed s2[o] s1[i], into
bin (h2[o] + h1[i]) mod k; the inner product of two sketches is an unbiased estimate of
the inner product of the gradients. There are three equal ways to compute it, and the
cheapest depends on the layer's shape, the batch's length, the dtype and k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from rapidin_cli.gradients.capture.sides import Side, WideSide
from rapidin_cli.gradients.compress.hashing import Bags, CountSketch, Pieces

Way = Literal["fourier", "matrix", "gradient"]


@dataclass(frozen=True)
class _Costs:
    """Nanoseconds per elementary step, measured on one x86 core with AVX-512 BF16.

    Only their ratios matter. A wrong choice costs time, never a wrong result.
    """

    gemm: float  # one multiply-add
    fft: float  # one element and one doubling of k, forward or inverse
    sketch: float  # one element transposed and count-sketched
    fold: float  # one element of a k x k matrix folded


# A layer with fewer elements has its hash laid out element by element, 8 bytes each.
_ELEMENTWISE = 2**16
# Blocks up to this size are folded from a k x k matrix.
_FOLDED = 2048
# Nothing of a vocabulary by the hidden side is formed that has more elements.
_FORMED = 2**20

_COSTS = {
    torch.bfloat16: _Costs(gemm=0.006, fft=0.17, sketch=0.4, fold=0.2),
    torch.float32: _Costs(gemm=0.025, fft=0.15, sketch=1.0, fold=0.2),
}


class BlockSketch:
    """The sketch of one layer: maps (x, d) of a batch to (B, k) and the gradients' norms.

    A layer with no more than k elements is kept as it is, without hashing: its block is the
    gradient itself, and its inner products are exact.

    Args:
        name: the layer's name; with `seed` it names the hashes.
        out_features, in_features: O and I.
        size: k.
        seed: of the cache.
        device, dtype: where, and in which precision, products are taken.
    """

    def __init__(
        self,
        name: str,
        out_features: int,
        in_features: int,
        size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.out_features = out_features
        self.in_features = in_features
        self.size = size
        self.exact = out_features * in_features <= size
        self._device = device
        self._dtype = dtype
        if not self.exact:
            self.out_hash = CountSketch.make(out_features, size, seed, name, "out")
            self.in_hash = CountSketch.make(in_features, size, seed, name, "in")

    @cached_property
    def _out_bags(self) -> Bags:
        return self.out_hash.bags(self._device, self._dtype)

    @cached_property
    def _in_bags(self) -> Bags:
        return self.in_hash.bags(self._device, self._dtype)

    def bins(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bin (O, I) and sign (O, I) of every element: the definition, for tests."""
        if self.exact:
            grid = torch.arange(self.out_features * self.in_features)
            grid = grid.view(self.out_features, self.in_features)
            return grid, torch.ones_like(grid, dtype=torch.float32)
        where = (self.out_hash.bin[:, None] + self.in_hash.bin[None, :]) % self.size
        return where, self.out_hash.sign[:, None] * self.in_hash.sign[None, :]

    def choose(self, length: int) -> Way:
        """Return the cheapest way for sequences of `length` tokens, whatever their number."""
        if self.exact:
            return "gradient"
        cost = _COSTS.get(self._dtype, _COSTS[torch.bfloat16])
        out, inner, k, steps = self.out_features, self.in_features, self.size, length
        # Both sides sketched, and the ghost norm, which the third way gets for nothing.
        sides = (cost.sketch + cost.gemm * steps) * steps * (out + inner)
        ways: dict[Way, float] = {
            "fourier": sides + cost.fft * np.log2(k) * k * (2 * steps + 1),
            "matrix": sides + cost.gemm * steps * k * k + cost.fold * k * k,
            "gradient": (cost.gemm * steps + cost.sketch) * out * inner
            + (0 if self._small else (cost.sketch * inner + cost.fold * k) * k),
        }
        return min(ways, key=lambda way: ways[way])

    @cached_property
    def _out_pieces(self) -> Pieces:
        return self.out_hash.pieces(self._device)

    def __call__(
        self, x: torch.Tensor, d: Side, way: Way | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sketch the gradients of a batch.

        Args:
            x: inputs, (B, T, I).
            d: gradients of the loss by the outputs, (B, T, O); zero at padding.
            way: forced way; chosen by cost when None.

        Returns:
            The sketches (B, k), not normalised, and the Frobenius norms (B,) of the exact
            gradients, both float32.
        """
        if isinstance(d, WideSide):
            return self._of_wide(x.float(), d, way)
        x, d = x.to(self._dtype), d.to(self._dtype)
        way = way or self.choose(x.shape[1])
        if way == "gradient":
            return self.of_gradient(torch.bmm(d.transpose(1, 2), x))
        batch, length = x.shape[:2]
        sx = self._in_bags(x.reshape(-1, self.in_features).t())
        sd = self._out_bags(d.reshape(-1, self.out_features).t())
        sx = sx.view(self.size, batch, length).permute(1, 0, 2)
        sd = sd.view(self.size, batch, length).permute(1, 0, 2)
        sketch = self._convolve(sx, sd) if way == "fourier" else self._outer(sx, sd)
        return sketch, ghost_norm(x, d)

    def _of_wide(
        self, x: torch.Tensor, d: WideSide, way: Way | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same where d is as wide as a vocabulary: its numbers are gone through once."""
        if self.exact or (d.shape[2] * x.shape[2] <= _FORMED and way in ("gradient", None)):
            return self.of_gradient(d.combined(x.mT).mT)
        batch, length = x.shape[:2]
        sd, gram = d.sketched(self._out_pieces)
        flat = x.reshape(-1, self.in_features).t().to(self._dtype)
        sx = self._in_bags(flat).view(self.size, batch, length).permute(1, 0, 2).float()
        cost = _COSTS[torch.float32]
        fourier = cost.fft * np.log2(self.size) * (2 * length + 1)
        matrix = cost.gemm * length * self.size + cost.fold * self.size
        apart = way == "fourier" or (way is None and fourier < matrix)
        sketch = self._convolve(sx, sd.mT) if apart else self._outer(sx, sd.mT)
        return sketch, root_of_products(gram, x)

    def _convolve(self, sx: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
        """Way (a): circular convolution by FFT, summed over tokens in the Fourier domain."""
        fx = torch.fft.rfft(sx.float(), dim=1)
        fd = torch.fft.rfft(sd.float(), dim=1)
        sketch: torch.Tensor = torch.fft.irfft((fx * fd).sum(2), n=self.size, dim=1)
        return sketch

    def _outer(self, sx: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
        """Way (b): one k x k matrix per example, its wrapped anti-diagonals summed."""
        return fold(torch.bmm(sd, sx.transpose(1, 2)))

    def of_gradient(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Way (c): from the gradients themselves, (B, O, I); returns what a call returns."""
        norm = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float32)
        return self._of_gradient(gradient.to(self._dtype)), norm

    def transposed(self, sketches: torch.Tensor) -> torch.Tensor:
        """Return S^T v, (B, k) -> (B, O, I), for the linear map S that sketches gradients."""
        shape = (len(sketches), self.out_features, self.in_features)
        if self.exact:
            return sketches[:, : self.out_features * self.in_features].reshape(shape)
        where, sign = self.bins()
        return sketches[:, where.to(sketches.device)] * sign.to(sketches.device)

    def _of_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.exact:
            flat = gradient.flatten(1).float()
            return torch.nn.functional.pad(flat, (0, self.size - flat.shape[1]))
        if self._small:
            return self._element_bags(gradient.flatten(1).t()).t().float()
        rows = self._out_bags(gradient.transpose(0, 1))  # (k, B, I)
        if self.size > _FOLDED:  # k x k numbers would be too many
            places = torch.arange(self.size)[:, None] + self.in_hash.bin[None, :]
            signed = rows.float() * self.in_hash.sign.to(rows.device)
            made = signed.new_zeros(len(gradient), self.size)
            where = (places % self.size).flatten().to(rows.device)
            return made.index_add_(1, where, signed.permute(1, 0, 2).flatten(1))
        return fold(self._in_bags(rows.permute(2, 1, 0)).permute(1, 2, 0))

    @property
    def _small(self) -> bool:
        return self.out_features * self.in_features <= _ELEMENTWISE

    @cached_property
    def _element_bags(self) -> Bags:
        """Both hashes as one over the elements: a single sum for a layer such as LoRA's."""
        where, sign = self.bins()
        whole = CountSketch(where.flatten(), sign.flatten(), self.size)
        return whole.bags(self._device, self._dtype)


def fold(matrix: torch.Tensor) -> torch.Tensor:
    """Sum the wrapped anti-diagonals: out[b, j] = sum_a M[b, a, (j - a) mod k], float32.

    Writing M twice side by side makes each wrapped diagonal a straight strided walk.
    """
    batch, k, _ = matrix.shape
    matrix = matrix.float()
    doubled = torch.cat((matrix, matrix), dim=2)
    return doubled.as_strided((batch, k, k), (2 * k * k, 2 * k - 1, 1), k).sum(1)


def ghost_norm(x: torch.Tensor, d: Side) -> torch.Tensor:
    """Frobenius norm of sum_t d_t x_t^T without forming it, (B,) float32.

    |G|^2 = sum_{t,t'} (x_t . x_t') (d_t . d_t') (Goodfellow 2015, arXiv 1510.01799; Li et
    al. 2022 call it the ghost norm).
    """
    if isinstance(d, WideSide):
        return root_of_products(d.gram(), x.float())
    return root_of_products(torch.bmm(d, d.transpose(1, 2)).float(), x)


def root_of_products(gram_d: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Do what `ghost_norm` does with d d^T, (B, T, T)."""
    gram_x = torch.bmm(x, x.transpose(1, 2)).float()
    return torch.einsum("bst,bst->b", gram_x, gram_d).clamp_min(0).sqrt()


WIDE_SHARE = 8
"""Shares of a matrix of tokens, or of fused experts.

With curvature, small eigenvalues, of rare words, amplify what a sketch confuses. With 1, 4, 8
and 16 here, faithfulness.py gave sketches of 1,024 numbers a layer an LDS by `ekfac` of .377,
.414, .445 and .428, and by `rapidin` of .431, .413, .417 and .405.
"""


def block_sizes(
    dimensions: int, layer_sizes: Sequence[int], shares: Sequence[int] | None = None
) -> list[int]:
    """Share K dimensions among layers: blocks by shares, none larger than its layer.

    Equal by default, because every layer counts alike in the layer-normalised score, and the
    variance of its estimate is 1 / k. What small layers leave goes to the others. Blocks are
    multiples of 16 (so that they can be folded), but for layers that are kept whole. Where
    dimensions are few, blocks are equal whatever the shares.

    Raises:
        ValueError: fewer than 16 dimensions for some layer.
    """
    blocks = [0] * len(layer_sizes)
    shares = [1] * len(layer_sizes) if shares is None else shares
    left, parts = dimensions, sum(shares)
    order = sorted(range(len(layer_sizes)), key=lambda layer: layer_sizes[layer] / shares[layer])
    for layer in order:
        share = left * shares[layer] // parts
        parts -= shares[layer]
        size = layer_sizes[layer]
        blocks[layer] = size if size <= share else share // 16 * 16
        if blocks[layer] == 0 and max(shares) > 1:
            return block_sizes(dimensions, layer_sizes)
        if blocks[layer] == 0:
            raise ValueError(f"{dimensions} dimensions are too few for {len(order)} layers")
        left -= blocks[layer]
    return blocks
