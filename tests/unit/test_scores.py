"""Scores against their definitions on dense gradients, and the scan against brute force."""

import numpy as np
import pytest
import torch

from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.layout import GradientRows, Layer, RowLayout
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.ranking import extremes
from rapidin_cli.influence.scan import CachedRows, scan
from rapidin_cli.influence.score import SCORES, choose_score
from rapidin_storage import Cache, CacheWriter, open_root
from rapidin_storage.cache import cache_name

LAYERS = (Layer("a", 4, 5), Layer("b", 6, 7), Layer("c", 3, 3))
SIZES = tuple(layer.size for layer in LAYERS)  # kept whole: no sketching error
LAYOUT = RowLayout(GradientSpec(precision="float16"), LAYERS, SIZES)
COUNT, TOKENS = 50, 4


def gradients(count: int, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    scales = (0.1, 1.0, 20.0)  # as in real models, layers differ widely
    return [torch.randn(count, size) * s for size, s in zip(SIZES, scales, strict=True)]


def as_rows(layers: list[torch.Tensor], divisors: torch.Tensor | None = None) -> GradientRows:
    norm = torch.stack([g.norm(dim=1) for g in layers], 1)
    by = norm if divisors is None else divisors.expand_as(norm)
    blocks = torch.cat([g / by[:, n : n + 1] for n, g in enumerate(layers)], 1)
    zeros = torch.zeros(len(norm))
    return GradientRows(blocks, norm, zeros, zeros, [])


def definition(name: str, query: list[torch.Tensor], token: list[torch.Tensor], rows):
    """The scores of one part of a query for all rows, from whole gradients."""
    flat = [torch.cat(x, -1) for x in (query, token, rows)]
    match name:
        case "dot":
            return flat[2] @ flat[1]
        case "cosine":
            return flat[2] @ flat[1] / (flat[2].norm(dim=1) * flat[0].norm())
    return sum(
        r @ t / (r.norm(dim=1) * q.norm()) for q, t, r in zip(query, token, rows, strict=True)
    )


@pytest.fixture
def snapshot(tmp_path):
    rows = as_rows(gradients(COUNT, 0))
    kind = row_kind(LAYOUT)
    writer = CacheWriter(Cache(open_root(tmp_path), cache_name({})), kind.arrays(), {}, 8)
    digests = np.stack([np.full(32, n + 1, np.uint8) for n in range(COUNT)])
    writer.add({**kind.encode(rows), "digest": digests})
    return writer.commit()


def cached(snapshot, hold="disk") -> CachedRows:
    return CachedRows(snapshot, row_kind(LAYOUT), hold, torch.device("cpu"))


def scanned(snapshot, rows, name, wanted, top, token_top):
    return scan(cached(snapshot), [rows], SCORES[name], wanted, top, token_top)[0]


def directions(name: str):
    tokens = gradients(TOKENS, 1)
    query = [g.sum(0) for g in tokens]
    norm = torch.stack([g.norm() for g in query])
    blocks = torch.cat([as_rows([g[None] for g in query]).blocks, as_rows(tokens, norm).blocks])
    weights = norm / SCORES[name].divisors(norm)
    return query, tokens, blocks * torch.repeat_interleave(weights, torch.tensor(SIZES))


@pytest.mark.parametrize("name", ["rapidin", "dot", "cosine"])
def test_scores_are_what_they_say(snapshot, name):
    query, tokens, rows = directions(name)
    everything = np.ones(COUNT, dtype=bool)
    found = scanned(snapshot, rows, name, everything, COUNT, 0)
    train = gradients(COUNT, 0)
    scale = np.abs(found.scores).max()
    expected = definition(name, query, query, train).numpy()
    np.testing.assert_allclose(found.scores[:, 0], expected, atol=3e-3 * scale)
    for t in range(TOKENS):
        part = definition(name, query, [g[t] for g in tokens], train).numpy()
        np.testing.assert_allclose(found.scores[:, 1 + t], part, atol=3e-3 * scale)
    np.testing.assert_allclose(found.scores[:, 1:].sum(1), found.scores[:, 0], atol=1e-3 * scale)


def test_the_scan_keeps_the_union_of_all_extremes(snapshot):
    """Also those that only one token ranks high, over all chunks."""
    _, _, rows = directions("rapidin")
    wanted = np.ones(COUNT, dtype=bool)
    wanted[[3, 17]] = False
    found = scanned(snapshot, rows, "rapidin", wanted, 3, 2)
    full = scanned(snapshot, rows, "rapidin", wanted, COUNT, COUNT)
    union = set()
    for column in range(1 + TOKENS):
        order = full.slots[np.argsort(full.scores[:, column], kind="stable")]
        top = 3 if column == 0 else 2
        union |= set(order[:top].tolist()) | set(order[-top:].tolist())
    assert set(found.slots.tolist()) == union
    assert np.isnan(found.totals[[3, 17]]).all()
    assert np.isfinite(np.delete(found.totals, [3, 17])).all()


def test_several_queries_in_one_scan_are_as_if_each_were_alone(snapshot):
    wanted = np.ones(COUNT, dtype=bool)
    _, _, rows = directions("dot")
    queries = [rows, rows[:2] * 3, rows[1:]]
    together = scan(cached(snapshot), queries, SCORES["dot"], wanted, 4, 1)
    for query, found in zip(queries, together, strict=True):
        alone = scanned(snapshot, query, "dot", wanted, 4, 1)
        np.testing.assert_array_equal(found.slots, alone.slots)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
        np.testing.assert_allclose(found.totals, alone.totals, rtol=1e-5)
        np.testing.assert_array_equal(found.sizes, alone.sizes)


def test_rows_held_in_memory_are_read_once_and_only_if_wanted(snapshot, monkeypatch):
    read = []
    stream = type(snapshot).stream

    def watched(self, names, chunks, keep):
        read.extend(chunks)
        return stream(self, names, chunks, keep)

    monkeypatch.setattr(type(snapshot), "stream", watched)
    _, _, rows = directions("dot")
    few = np.zeros(COUNT, dtype=bool)
    few[[9, 20, 21]] = True  # chunks 1 and 2, of 8 rows each
    held = cached(snapshot, "cpu")
    first = scan(held, [rows], SCORES["dot"], few, 2, 1)[0]
    assert read == [1, 2]
    everything = np.ones(COUNT, dtype=bool)
    scan(held, [rows], SCORES["dot"], everything, 2, 1)
    assert sorted(read) == list(range(7))
    again = scan(held, [rows], SCORES["dot"], few, 2, 1)[0]
    assert sorted(read) == list(range(7))
    np.testing.assert_array_equal(first.slots, again.slots)
    np.testing.assert_array_equal(first.scores, again.scores)


def test_extremes_of_equal_scores_are_the_first_low_and_the_last_high_ones():
    """As sorting would have it, which is what this is compared with."""
    scores = np.random.default_rng(0).integers(0, 5, (60, 4)).astype(np.float32)
    for top, token_top in ((3, 2), (60, 1), (100, 100), (1, 0), (0, 3)):
        kept = set()
        for column in range(4):
            count = min(top if column == 0 else token_top, 60)
            order = np.argsort(scores[:, column], kind="stable").tolist()
            kept |= set(order[:count]) | set(order[60 - count :])
        assert extremes(scores, top, token_top).tolist() == sorted(kept)
    assert len(extremes(scores[:0], 3, 2)) == 0


def test_scores_that_the_rows_cannot_answer_are_refused():
    mixed = RowLayout(GradientSpec(sketch="oporp"), LAYERS, (64,))
    assert choose_score("rapidin", mixed).name == "rapidin"
    with pytest.raises(UsageError, match="mix all layers"):
        choose_score("dot", mixed)
    with pytest.raises(UsageError, match="no score"):
        choose_score("nothing", LAYOUT)
    factors = RowLayout(GradientSpec(row="factors"), LAYERS, (1, 2, 3))
    assert choose_score("ekfac", factors).name == "ekfac"
    with pytest.raises(UsageError, match="factor rows"):
        choose_score("gram", factors)
