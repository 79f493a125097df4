"""Products of stored rows against a plain loop over rows, layers and queries.

The layers' sizes cross bytes, tiles and nibbles, and there are more rows than a tile has.
"""

import numpy as np
import pytest
import torch

from rapidin_cli.gradients.layout import GradientRows, Layer, RowLayout
from rapidin_cli.gradients.rows import factor_products, integers
from rapidin_cli.gradients.rows import sketch_products as products
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec

BLOCKS = (35, 35, 12, 160, 160, 160, 3000, 7)
SIDES = ((5, 7), (8, 3), (9, 11), (40, 33))
BLOCK = ((40, 40), (8, 40), (8, 40), (40, 40), (64, 40))  # q, k, v, o, up
COUNT, QUERIES = 150, 3
# Of all products together, relative: directions in whole numbers may cost that much.
ERROR = {"float16": 1e-6, "int8": 5e-4, "sign": 5e-4}


def rows_of(width: int, layers: int) -> GradientRows:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(COUNT, width, generator=generator)
    norm = torch.rand(COUNT, layers, generator=generator) + 0.5
    return GradientRows(blocks, norm, torch.zeros(COUNT), torch.zeros(COUNT), [])


def weights_of(layers: int, *, wanted: bool) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(COUNT, layers, generator=generator) if wanted else None


@pytest.fixture(params=["bytes", "floats"])
def way(request, monkeypatch):
    """How bytes are multiplied: on x86 as they are, elsewhere as floats."""
    if request.param == "floats":
        monkeypatch.setattr(products, "multiplies_bytes", lambda: False)
    elif not integers.multiplies_bytes():
        pytest.skip("this CPU has no exact products of bytes")
    return request.param


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "float16", "sign"])
def test_products_of_sketches_are_sums_over_layers(precision, weighted, way):
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
    found = kind.products(directions)(stored, weights)
    error = 1e-6 if way == "floats" else ERROR[precision]
    assert (found - expected).norm() / expected.norm() < error


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("weighted", [False, True])
def test_a_direction_with_few_large_numbers_keeps_its_small_ones(weighted):
    """One number of each layer is 1,000 times as large as the rest, and is zero in all rows."""
    sizes = (400, 600)
    layers = tuple(Layer(str(n), size, 1000) for n, size in enumerate(sizes))
    kind = row_kind(RowLayout(GradientSpec(precision="int8"), layers, sizes))
    rows = rows_of(1000, 2)
    rows.blocks[:, [7, 777]] = 0
    stored = kind.encode(rows)
    directions = torch.randn(QUERIES, 1000, generator=torch.Generator().manual_seed(1))
    directions[:, [7, 777]] = 1000
    weights = torch.ones(COUNT, 2) if weighted else None
    expected = kind.values(stored) @ directions.T
    found = kind.products(directions)(stored, weights)
    assert (found - expected).norm() / expected.norm() < 5e-4


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("precision", ["int8", "sign"])
@pytest.mark.parametrize("weighted", [False, True])
def test_long_rows_do_not_overflow(precision, weighted):
    """All products have the same sign, and a layer is longer than 32 bits hold sums of."""
    sizes = (integers.COLUMNS + 12, 2 * integers.COLUMNS + 36)
    layers = tuple(Layer(str(n), size, 1000) for n, size in enumerate(sizes))
    kind = row_kind(RowLayout(GradientSpec(precision=precision), layers, sizes))
    # Rows and directions are stored and multiplied as ones.
    root = torch.cat([torch.full((size,), size**0.5) for size in sizes])
    nothing = torch.zeros(3)
    rows = GradientRows((1 / root).repeat(3, 1), torch.ones(3, 2), nothing, nothing, [])
    stored = kind.encode(rows)
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) if weighted else None
    found = kind.products(root.repeat(2, 1))(stored, weights)
    expected = torch.tensor([sizes[0], sizes[1], sum(sizes)] if weighted else [sum(sizes)] * 3)
    torch.testing.assert_close(found, expected[:, None].expand(3, 2).float())


def test_planes_add_up_to_what_they_stand_for():
    values = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    values[3] = 0
    error = []
    for count in (1, 2, 3):
        planes, steps = integers.planes_of(values, count)
        assert planes.dtype == torch.int8
        assert planes.abs().max() <= integers.MOST
        error.append((((planes * steps[..., None]).sum(0) - values).norm() / values.norm()).item())
    assert error[0] < 0.03
    assert error[1] < error[0] / 100
    assert error[2] < error[1] / 30


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int4", "int8", "float16"])
@pytest.mark.parametrize("sides", [SIDES, BLOCK * 3], ids=["odd", "blocks"])
def test_products_of_factors_are_those_of_the_matrices(sides, precision, weighted, monkeypatch):
    # Several steps for a run of layers.
    monkeypatch.setitem(factor_products._NUMBERS, "cpu", 2 * COUNT * 3 * 50)
    rank, other = 3, 2
    layers = tuple(Layer(str(n), *pair) for n, pair in enumerate(sides))
    widths = tuple(rank * sum(pair) for pair in sides)
    layout = RowLayout(GradientSpec(row="factors", rank=rank, precision=precision), layers, widths)
    kind = row_kind(layout)
    stored = kind.encode(rows_of(sum(widths), len(sides)))
    directions = torch.randn(
        QUERIES, other * sum(map(sum, sides)), generator=torch.Generator().manual_seed(1)
    )
    weights = weights_of(len(sides), wanted=weighted)
    expected = torch.zeros(COUNT, QUERIES)
    for n in range(COUNT):
        values = numbers(stored["factors"][n], precision)
        at, place = 0, 0
        for layer, (out, inner) in enumerate(sides):
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
    found = kind.products(directions)(stored, weights)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_layers_of_blocks_are_multiplied_together():
    starts = np.cumsum([0, *(sum(pair) for pair in BLOCK * 4)]).tolist()
    runs = list(factor_products._progressions(list(BLOCK * 4), starts))
    assert runs == [range(n, n + 16, 5) for n in range(5)]
    assert list(factor_products._progressions(list(SIDES), starts)) == [
        range(n, n + 1) for n in range(4)
    ]


def numbers(stored: np.ndarray, precision: str) -> torch.Tensor:
    """The stored numbers of a row, nibbles unpacked one by one."""
    if precision != "int4":
        return torch.from_numpy(stored.astype(np.float32))
    halves = [half for byte in stored.tolist() for half in (byte & 15, byte >> 4)]
    return torch.tensor([half - 16 if half > 7 else half for half in halves], dtype=torch.float32)
