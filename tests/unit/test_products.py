"""Products of stored rows against a plain loop over rows, layers and queries.

The layers' sizes cross bytes, tiles and nibbles, and there are more rows than a tile has.
"""

import numpy as np
import pytest
import torch

from rapidin_cli.gradients import products
from rapidin_cli.gradients.rows import GradientRows, Layer, RowLayout, row_kind
from rapidin_cli.gradients.spec import GradientSpec

BLOCKS = (35, 35, 12, 160, 160, 160, 3000, 7)
SIDES = ((5, 7), (8, 3), (9, 11), (40, 33))
COUNT, QUERIES = 150, 3


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    with products.one_thread_each():
        yield request.param


def rows_of(width: int, layers: int) -> GradientRows:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(COUNT, width, generator=generator)
    norm = torch.rand(COUNT, layers, generator=generator) + 0.5
    return GradientRows(blocks, norm, torch.zeros(COUNT), torch.zeros(COUNT), [])


def weights_of(layers: int, *, wanted: bool) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(COUNT, layers, generator=generator) if wanted else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "float16", "sign"])
def test_products_of_sketches_are_sums_over_layers(precision, weighted, threads):
    layers = tuple(Layer(str(n), size, 1000) for n, size in enumerate(BLOCKS))
    kind = row_kind(RowLayout(GradientSpec(precision=precision), layers, BLOCKS))
    rows = rows_of(sum(BLOCKS), len(BLOCKS))
    if precision == "sign":
        rows.norm[3, 2] = rows.norm[140, 6] = 0  # zero gradients, whose signs mean nothing
    stored = kind.encode(rows)
    directions = torch.randn(QUERIES, sum(BLOCKS), generator=torch.Generator().manual_seed(1))
    weights = weights_of(len(BLOCKS), wanted=weighted)
    values = kind.values(stored)  # as they were before encoding
    expected = torch.zeros(COUNT, QUERIES)
    for n in range(COUNT):
        start = 0
        for layer, size in enumerate(BLOCKS):
            block = slice(start, start + size)
            factor = 1.0 if weights is None else weights[n, layer]
            expected[n] += factor * (directions[:, block] @ values[n, block])
            start += size
    found = kind.products(directions, torch.device("cpu"), threads)(stored, weights)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int4", "int8", "float16"])
def test_products_of_factors_are_those_of_the_matrices(precision, weighted, threads, monkeypatch):
    monkeypatch.setitem(products._NUMBERS, "cpu", 2000)  # several tiles of rows
    rank, other = 3, 2
    layers = tuple(Layer(str(n), *sides) for n, sides in enumerate(SIDES))
    widths = tuple(rank * sum(sides) for sides in SIDES)
    layout = RowLayout(GradientSpec(row="factors", rank=rank, precision=precision), layers, widths)
    kind = row_kind(layout)
    stored = kind.encode(rows_of(sum(widths), len(SIDES)))
    directions = torch.randn(
        QUERIES, other * sum(map(sum, SIDES)), generator=torch.Generator().manual_seed(1)
    )
    weights = weights_of(len(SIDES), wanted=weighted)
    expected = torch.zeros(COUNT, QUERIES)
    for n in range(COUNT):
        values = numbers(stored["factors"][n], precision)
        at, place = 0, 0
        for layer, (out, inner) in enumerate(SIDES):
            u = values[at : at + rank * out].view(rank, out)
            v = values[at + rank * out : at + rank * (out + inner)].view(rank, inner)
            at += rank * (out + inner)
            scale = torch.from_numpy(stored["scale"][n, layer * rank : (layer + 1) * rank])
            matrix = (u * scale[:, None]).T @ v * (1.0 if weights is None else weights[n, layer])
            for query in range(QUERIES):
                d = directions[query]
                left = d[place : place + other * out].view(other, out)
                right = d[place + other * out : place + other * (out + inner)].view(other, inner)
                expected[n, query] += (matrix * (left.T @ right)).sum()
            place += other * (out + inner)
    found = kind.products(directions, torch.device("cpu"), threads)(stored, weights)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def numbers(stored: np.ndarray, precision: str) -> torch.Tensor:
    """The stored numbers of a row, nibbles unpacked one by one."""
    if precision != "int4":
        return torch.from_numpy(stored.astype(np.float32))
    halves = [half for byte in stored.tolist() for half in (byte & 15, byte >> 4)]
    return torch.tensor([half - 16 if half > 7 else half for half in halves], dtype=torch.float32)
