"""The rankings that tests/benchmarks/faithfulness.py compares: names, scores, bytes a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.examples import Example
from rapidin_cli.gradients import curvature
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.optimizer_state import STATE_FILE, second_moments
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.gradients.rows.kinds import RowKind, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.influence.preconditioners import Adam, Ekfac, Gram, Preconditioner
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.query_gradients import QueryGradient, query_gradient
from rapidin_cli.influence.score import SCORES
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model, quiet_loading
from rapidin_storage import Cache, CacheWriter, Snapshot, cache_name, open_root

Array = np.ndarray[Any, Any]
CPU = torch.device("cpu")
WHOLE = GradientSpec(dimensions=2**24, precision="float16")  # nothing is hashed


@dataclass(frozen=True)
class Ranking:
    """One way to score: every row (N) for every query (Q), and what it stores of a row."""

    name: str
    scores: Array
    row_bytes: int


class Scorer:
    """One checkpoint of the benchmark, with its gradients."""

    def __init__(
        self,
        folder: Path,
        setting: str,
        name: str,
        data: Sequence[Example],
        queries: Any,
        *,
        start: bool = False,
    ) -> None:
        base = folder / "base" if setting == "lora" else None
        self._checkpoint = Checkpoint(name, folder / setting / name, base, start=start)
        if start and base is None:
            self._checkpoint = Checkpoint(name, folder / "base", None)
        self._batches = [as_batch(data[n : n + 16]) for n in range(0, len(data), 16)]
        self._data = data
        self.whole = self._cached(WHOLE)
        passes = self.whole.engine.passes
        self._queries = [query_gradient(passes, Query("", "given", q)) for q in queries]
        self.model = passes.model
        self._layers = curvature.collect(passes, self._batches, sampled=False)
        self.inverses: dict[str, Preconditioner] = {
            "ekfac": Ekfac(self._layers, SCORES["ekfac"].damping, CPU)
        }
        if (self._checkpoint.path / STATE_FILE).exists() and not start:
            moments = second_moments(self._checkpoint, passes)
            self.inverses["adam"] = Adam(moments, SCORES["adam"].damping, CPU)

    def load(self) -> Any:
        """Load the checkpoint; all of it, or the adapter, requires a gradient."""
        with quiet_loading():
            return load_model(self._checkpoint, "cpu")

    def _cached(self, spec: GradientSpec) -> _Rows:
        engine = GradientEngine(self.load(), spec, CPU, "float32")
        kind = row_kind(engine.layout)
        parts = [kind.encode(engine(batch)) for batch in self._batches]
        stored = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _Rows(engine, kind, stored)

    def scores(self, rows: _Rows, name: str, inverse: Preconditioner | None = None) -> Array:
        """Score cached rows as `rin retrieve --exact 0` does."""
        score = SCORES[name]
        directions = torch.stack(
            [self._direction(rows, query, name, inverse) for query in self._queries]
        )
        if inverse is not None and inverse.on_rows:
            directions = inverse.apply_to_rows(directions)
        weights = score.row_weights(torch.from_numpy(rows.stored["norm"]))
        return rows.kind.products(directions)(rows.stored, weights).numpy()

    def _direction(
        self, rows: _Rows, query: QueryGradient, name: str, inverse: Preconditioner | None
    ) -> torch.Tensor:
        layers: Sequence[Any] = query.layers
        if inverse is not None and not inverse.on_rows:
            layers = [inverse.direction(n, layer) for n, layer in enumerate(query.layers)]
        return rows.engine.probe(layers, SCORES[name].divisors(query.norm))

    def exact(self) -> Iterator[Ranking]:
        """From whole gradients."""
        size = self.whole.engine.layout.parameters * 4
        for name in ("rapidin", "dot", "cosine", *self.inverses):
            scores = self.scores(self.whole, name, self.inverses.get(name))
            yield Ranking(f"exact {name}", scores, size)

    def sketched(self, numbers: int, precision: Any) -> Iterator[Ranking]:
        """From sketch rows of so many numbers a layer."""
        layers = len(self.whole.engine.layout.layers)
        rows = self._cached(GradientSpec(dimensions=numbers * layers, precision=precision))
        label = f"sketch {numbers} a layer, {precision}"
        for name in ("rapidin", "dot", *self.inverses):
            scores = self.scores(rows, name, self.inverses.get(name))
            yield Ranking(f"{label}: {name}", scores, rows.row_bytes)
        with TemporaryDirectory() as folder:
            snapshot = self._store(rows, Path(folder))
            damping = SCORES["gram"].damping
            gram = Gram(snapshot, rows.engine.layout, rows.engine.sketches, damping, CPU)
            yield Ranking(f"{label}: gram", self.scores(rows, "gram", gram), rows.row_bytes)

    def _store(self, rows: _Rows, folder: Path) -> Snapshot:
        writer = CacheWriter(Cache(open_root(folder), cache_name({})), rows.kind.arrays(), {}, 64)
        digests = [np.frombuffer(example.digest, np.uint8) for example in self._data]
        writer.add({**rows.stored, "digest": np.stack(digests)})
        snapshot = writer.commit()
        assert snapshot is not None
        return snapshot

    def factored(self, rank: int, projection: int, precision: Any) -> Iterator[Ranking]:
        """From factor rows."""
        spec = GradientSpec(row="factors", rank=rank, projection=projection, precision=precision)
        rows = self._cached(spec)
        label = f"factors, rank {rank}, {precision}" + (f", p = {projection}" if projection else "")
        for name in ("ekfac",) if projection else (*self.inverses, "dot"):
            scores = self.scores(rows, name, self.inverses.get(name))
            yield Ranking(f"{label}: {name}", scores, rows.row_bytes)


@dataclass(frozen=True)
class _Rows:
    engine: GradientEngine
    kind: RowKind
    stored: dict[str, Array]

    @property
    def row_bytes(self) -> int:
        """Norms, loss and scale included; before compression."""
        return sum(values[0].nbytes for values in self.stored.values())


def baselines(model: Any, data: Sequence[Example], queries: Sequence[Example]) -> Iterator[Ranking]:
    """What needs no gradient: words, the model's own representation, chance."""
    lexical = Lexical(data)
    yield Ranking("BM25", np.stack([lexical.scores(q) for q in queries], 1), 0)
    rows, asked = _embeddings(model, data), _embeddings(model, queries)
    yield Ranking("embedding similarity", rows @ asked.T, rows.shape[1] * 4)
    chance = np.random.default_rng(0).standard_normal((len(data), len(queries)))
    yield Ranking("random", chance, 0)


@torch.no_grad()
def _embeddings(model: Any, examples: Sequence[Example]) -> Array:
    """Mean of the last hidden states, of length one."""
    found = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
        found.append(hidden / hidden.norm())
    return torch.stack(found).numpy()
