"""rin as a contender of `peers.py`: its engine, its rows and its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rapidin_cli.caching import chunk_rows
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.rows import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.score import SCORES
from rapidin_storage import Cache, open_root
from tests.benchmarks.peers_worker import Array, Contender, Data, Job, Turns, load

SPECS = {
    "sketch": GradientSpec(),
    "sign": GradientSpec(precision="sign"),
    "factors": GradientSpec(row="factors", rank=4, precision="int4"),
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
        with cache.writer(arrays, {}, chunk_rows(size)) as writer:
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
        directions = torch.cat(
            [self.engine.directions(Batch(*batch), divisors) for batch in queries.batches]
        )
        found: Array = self.kind.products(
            stored, directions, SCORES["dot"].row_weights(norm)
        ).numpy()
        return found


def make(job: Job) -> Contender:
    """The contender of a job."""
    made: Contender = Rin(job)
    return made
