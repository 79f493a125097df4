"""Reproducible hashes, signs and permutations from a counter-based generator.

Everything is derived from raw 64-bit Philox output keyed by a name: the same in every
process, on every device and with every NumPy release (whose *distributions* may change,
but not its bit streams). A cache written today must mean the same next year.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


def _raw(count: int, *key: object) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    generator = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))
    return np.atleast_1d(generator.random_raw(count)).astype(np.uint64)


def permutation(count: int, *key: object) -> IntArray:
    """Return a permutation of 0..count-1 named by `key`, (count,) int64."""
    return np.argsort(_raw(count, *key, "permutation"), kind="stable")


def signs(count: int, *key: object) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Return `count` Rademacher signs, +1 or -1, named by `key`."""
    # The top bit: 0 -> +1, 1 -> -1.
    return (1 - 2 * (_raw(count, *key, "signs") >> np.uint64(63)).astype(np.int8)).astype(np.int8)


def bins(count: int, size: int, *key: object) -> IntArray:
    """Hash 0..count-1 into `size` bins, evenly: no bin gets over ceil(count / size).

    Taken from a permutation, so that with `count <= size` all bins are distinct and drawn
    among all of them.
    """
    slots = -(-count // size) * size
    return permutation(slots, *key)[:count] % size


@dataclass(frozen=True)
class CountSketch:
    """The count-sketch R^n -> R^k of one side of a layer, as one embedding-bag call.

    Bag j lists the coordinates of bin j with their signs, so that the sketch of many
    vectors is a signed sum of rows: no scatter, and about 50 times faster on a CPU than a
    gather on the last axis (measured: 0.05 against 2.4 ms for 1,536 vectors of 576).
    """

    bin: torch.Tensor  # (n,) int64
    sign: torch.Tensor  # (n,) float32
    size: int

    @classmethod
    def make(cls, count: int, size: int, *key: object) -> CountSketch:
        """Draw the hash and the signs of one side, named by `key`."""
        return cls(
            torch.from_numpy(bins(count, size, *key)),
            torch.from_numpy(signs(count, *key).astype(np.float32)),
            size,
        )

    def bags(self, device: torch.device, dtype: torch.dtype) -> Bags:
        """Lay the hash out for `device` and values of `dtype`."""
        order = torch.argsort(self.bin, stable=True)
        counts = torch.bincount(self.bin, minlength=self.size)
        offsets = torch.cumsum(counts, 0) - counts
        return Bags(
            order.to(device, torch.int32),
            offsets.to(device, torch.int32),
            self.sign[order].to(device, dtype),
        )

    def pieces(self, device: torch.device) -> Pieces:
        """Lay the hash out for values that come some coordinates at a time."""
        return Pieces(self, device)


class Pieces:
    """A `CountSketch` of which shares are taken, and of vectors with a single one."""

    def __init__(self, whole: CountSketch, device: torch.device) -> None:
        self.size = whole.size
        self._whole = whole
        self._device = device
        self._bags: dict[tuple[int, int], Bags] = {}
        self._bin = whole.bin.to(device)
        self._sign = whole.sign.to(device)

    def part(self, first: int, last: int, values: torch.Tensor) -> torch.Tensor:
        """Return the share of some coordinates, (last - first, n) -> (k, n)."""
        bags = self._bags.get((first, last))
        if bags is None:
            bin, sign = self._whole.bin[first:last], self._whole.sign[first:last]
            bags = CountSketch(bin, sign, self.size).bags(self._device, torch.float32)
            self._bags[first, last] = bags
        return bags(values)

    def of_ones(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the sketches of vectors with a single one, (...) -> (..., k)."""
        made = self._sign.new_zeros(*ids.shape, self.size)
        return made.scatter_(-1, self._bin[ids][..., None], self._sign[ids][..., None])


@dataclass(frozen=True)
class Bags:
    """A `CountSketch` laid out for one device and dtype."""

    order: torch.Tensor
    offsets: torch.Tensor
    sign: torch.Tensor

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Sketch along the first axis: (n, ...) -> (k, ...)."""
        # Strided rows would fall onto a path thirty times slower.
        rows = values.reshape(values.shape[0], -1).contiguous()
        sketch = F.embedding_bag(
            self.order, rows, self.offsets, mode="sum", per_sample_weights=self.sign
        )
        return sketch.view(-1, *values.shape[1:])
