"""What `peers.py` runs in rin's environment: rin, the released RapidIn, exact gradients.

The released RapidIn's procedure is written anew from its description: one example at a time,
the whole trainable gradient, each parameter's divided by its norm, padded to a multiple of
2^24, forty permutations of a matrix's rows or columns, random signs, sums of neighbours, fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.score import SCORES
from rapidin_cli.work.caching import chunk_rows
from rapidin_storage import Cache, CacheWriter, open_root
from tests.benchmarks.peers_worker import (
    Array,
    Data,
    Job,
    ProjectedRows,
    Turns,
    linear_layers,
    load,
    loss_of,
)

SPECS = {
    # What the others capture: the weights of linear layers.
    "sketch": GradientSpec(capture="linear"),
    "sign": GradientSpec(precision="sign", capture="linear"),
    "small": GradientSpec(dimensions=8192, capture="linear"),
    "factors": GradientSpec(row="factors", rank=4, precision="int4", capture="linear"),
}
CACHE = "0" * 64


class Rin:
    """Batches through the engine into a store that is committed at the end."""

    def __init__(self, job: Job) -> None:
        spec = SPECS[job["kind"]]
        self.note = spec.describe()
        self.engine = GradientEngine(load(job), spec, torch.device("cpu"), "float32")
        self.kind = row_kind(self.engine.layout)

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        arrays = self.kind.arrays()
        size = sum(array.row_bytes for array in arrays.values())
        cache = Cache(open_root(folder), CACHE)
        with CacheWriter(cache, arrays, {}, chunk_rows(size)) as writer:
            for number in turns:
                rows = self.kind.encode(self.engine(Batch(*data.batches[number])))
                digests = np.zeros((len(rows["loss"]), 32), np.uint8)
                digests[:, 0] = 1
                digests[:, 1:9] = np.array(data.members[number])[:, None].view(np.uint8)
                writer.add({**rows, "digest": digests})
            writer.commit()

    def scores(self, data: Data, folder: Path, queries: Data, other: Path) -> Array:
        del other
        snapshot = Cache(open_root(folder), CACHE).snapshot()
        assert snapshot is not None
        stored = snapshot.read(0, len(data), list(self.kind.arrays()))
        norm = torch.from_numpy(stored["norm"])
        divisors = SCORES["dot"].divisors(norm[0])
        directions = torch.stack(
            [
                self._direction(one, divisors)
                for batch in queries.batches
                for one in zip(*batch, strict=True)
            ]
        )
        products = self.kind.products(directions)
        found: Array = products(stored, SCORES["dot"].row_weights(norm)).numpy()
        return found

    def _direction(self, query: Any, divisors: torch.Tensor) -> torch.Tensor:
        layers: dict[int, LayerGradient] = {}

        def consume(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
            layers[number] = LayerGradient.of(x, d)

        ids, labels = query
        self.engine.passes.backward(Batch(ids[None], labels[None]), consume)
        return self.engine.probe([layers[n] for n in sorted(layers)], divisors)


class RapidIn(ProjectedRows):
    """The released RapidIn's procedure at K = 65,536 (see the module's docstring)."""

    K, PADDING, ROUNDS = 65_536, 2**24, 20
    note = "K = 65,536, fp16, batch 1; fidelity with its forty permutations composed into one"

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, load(job)
        size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.length = -(-size // self.PADDING) * self.PADDING
        draw = torch.Generator().manual_seed(0)
        # Every round has views of its own, as powers of two that divide the length.
        self.steps = []
        for _ in range(self.ROUNDS):
            rows, columns = (2 ** int(torch.randint(6, 19, (), generator=draw)) for _ in "rc")
            self.steps.append(
                (torch.randperm(rows, generator=draw), torch.randperm(columns, generator=draw))
            )
        self.signs = torch.randint(0, 2, (self.length,), generator=draw).float() * 2 - 1

    def shuffle(self, vector: torch.Tensor) -> torch.Tensor:
        for rows, columns in self.steps:
            vector = vector.view(len(rows), -1)[rows].view(-1)
            vector = vector.view(-1, len(columns))[:, columns].view(-1)
        return vector

    def gradient(self, data: Data, number: int) -> torch.Tensor:
        parts = own_gradients(self.model, data.ids[number], data.labels[number])
        return torch.cat([F.normalize(part.flatten(), dim=0) for part in parts])

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        folder.mkdir()
        for number in turns:
            for row in data.members[number]:
                whole = self.gradient(data, row)
                mixed = self.shuffle(F.pad(whole, (0, self.length - len(whole)))) * self.signs
                sketch = mixed.view(self.K, -1).sum(1).half()
                torch.save(sketch, folder / f"{row:06}.pt")

    def composed(self, data: Data) -> Array:
        """The same sketches for the cost of one permutation, (N, K)."""
        size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        place = torch.empty(self.length, dtype=torch.int64)
        place[self.shuffle(torch.arange(self.length))] = torch.arange(self.length)
        place = place[:size]
        group, sign = place // (self.length // self.K), self.signs[place]
        rows = torch.zeros(len(data), self.K)
        for number in range(len(data)):
            rows[number].index_add_(0, group, self.gradient(data, number) * sign)
        return rows.half().float().numpy()

    def scores(self, data: Data, folder: Path, queries: Data, other: Path) -> Array:
        """Of all rows, by the composed permutation; what is stored must be the same."""
        del other
        stored = np.stack([torch.load(file).numpy() for file in sorted(folder.glob("*.pt"))])
        np.testing.assert_allclose(stored, self.composed(data), atol=1e-2)
        found: Array = self.composed(Data(self.job["rows"])) @ self.composed(queries).T
        return found


def own_gradients(model: Any, ids: list[int], labels: list[int]) -> list[torch.Tensor]:
    """Gradients of one row, of every trainable parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = loss_of(model, torch.tensor([ids]), torch.tensor([labels]))
    return list(torch.autograd.grad(loss, parameters))


class Exact:
    """Not a contender: whole gradients, their inner products and those of unit layers."""

    def __init__(self, job: Job) -> None:
        self.model = load(job)
        covered = {f"{name}.weight" for name in linear_layers(self.model)}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.linear = torch.tensor([name in covered for name in trained])

    def gradients(self, data: Data) -> Iterator[list[torch.Tensor]]:
        for ids, labels in zip(data.ids, data.labels, strict=True):
            yield [part.flatten() for part in own_gradients(self.model, ids, labels)]

    def products(self, data: Data, queries: Data) -> tuple[Array, Array]:
        """Over the linear layers, and of all parameters each divided by its norm: (N, Q)."""
        asked = [torch.stack(parts) for parts in zip(*self.gradients(queries), strict=True)]
        norms = torch.stack([part.norm(dim=1) for part in asked])  # (P, Q)
        dots, units = [], []
        for row in self.gradients(data):
            inner = torch.stack([q @ part for q, part in zip(asked, row, strict=True)])
            sizes = torch.stack([part.norm() for part in row])[:, None] * norms
            dots.append(inner[self.linear].sum(0))
            units.append((inner / sizes.clamp_min(1e-30)).sum(0))
        return torch.stack(dots).numpy(), torch.stack(units).numpy()


def make(job: Job) -> Any:
    """The contender of a job."""
    return {"RapidIn": RapidIn, "exact": Exact}.get(job["kind"], Rin)(job)
