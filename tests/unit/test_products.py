"""Products of stored rows against a plain loop over rows, layers and queries.

The layers' sizes cross bytes, tiles and nibbles, and there are more rows than a tile has.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rapidin_cli.gradients import rows as rows_package
from rapidin_cli.gradients.layout import Array, GradientRows, Layer, RowLayout
from rapidin_cli.gradients.rows import factor_products, few_directions
from rapidin_cli.gradients.rows import sketch_products as products
from rapidin_cli.gradients.rows.kinds import RowKind, row_kind
from rapidin_cli.gradients.spec import GradientSpec

BLOCKS = (35, 35, 12, 160, 160, 160, 3000, 7)
SIDES = ((5, 7), (8, 3), (9, 11), (40, 33))
BLOCK = ((40, 40), (8, 40), (8, 40), (40, 40), (64, 40))  # q, k, v, o, up
COUNT, QUERIES = 150, 3
# Of all products together, relative: what directions for bits may lose.
ROUNDED = 3e-4


def rows_of(width: int, layers: int) -> GradientRows:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(COUNT, width, generator=generator)
    norm = torch.rand(COUNT, layers, generator=generator) + 0.5
    return GradientRows(blocks, norm, torch.zeros(COUNT), torch.zeros(COUNT), [])


def multiplied(
    kind: RowKind, stored: dict[str, Array], directions: Array, weights: Array | None
) -> Array:
    of_rows = None if weights is None else torch.from_numpy(weights)
    found: Array = kind.products(torch.from_numpy(directions))(stored, of_rows).numpy()
    return found


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def weights_of(layers: int, *, wanted: bool) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(COUNT, layers, generator=generator) if wanted else None


@pytest.fixture(params=["loops", "floats"])
def way(request, monkeypatch):
    """How bytes are multiplied, whatever the number of directions."""
    if request.param == "loops":
        assert few_directions.kernels() is not None
        monkeypatch.setattr(products, "FEW", {"int8": 100, "sign": 100, "float16": 0})
    else:
        monkeypatch.setattr(products, "kernels", lambda: None)
    return request.param


def sketches(precision: str, blocks: Sequence[int], count: int) -> tuple[RowKind, dict[str, Array]]:
    """Rows as they are stored, with all numbers that bytes can have."""
    layers = tuple(Layer(str(n), size, 1000) for n, size in enumerate(blocks))
    kind = row_kind(RowLayout(GradientSpec(precision=precision), layers, tuple(blocks)))
    width = kind.arrays()["sketch"].row_shape[0]
    draw = np.random.default_rng(0)
    stored: dict[str, Array] = {
        "scale": draw.random(count, np.float32) + 0.5,
        "norm": draw.random((count, len(blocks)), np.float32) + 0.5,
    }
    if precision == "float16":
        stored["sketch"] = draw.standard_normal((count, width)).astype(np.float16)
    else:
        dtype = np.int8 if precision == "int8" else np.uint8
        numbers = np.frombuffer(draw.bytes(count * width), dtype).copy()
        stored["sketch"] = numbers.reshape(count, width)
    return kind, stored


def in_doubles(
    blocks: Sequence[int],
    precision: str,
    stored: dict[str, Array],
    directions: Array,
    weights: Array | None,
) -> Array:
    """The products, each a sum over layers, in float64."""
    values = stored["sketch"].astype(np.float64)
    if precision == "sign":
        values = np.unpackbits(stored["sketch"], axis=1, count=sum(blocks)) * 2.0 - 1
    total = np.zeros((len(values), len(directions)))
    start = 0
    for layer, size in enumerate(blocks):
        block = slice(start, start + size)
        of_layer = values[:, block] @ (directions[:, block].astype(np.float64).T / size**0.5)
        if weights is not None:
            of_layer *= weights[:, layer, None]
        if precision == "sign":
            of_layer[stored["norm"][:, layer] == 0] = 0
        total += of_layer
        start += size
    return total * stored["scale"][:, None]


@pytest.mark.parametrize("queries", [1, 2, 5, 65])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "float16", "sign"])
def test_products_of_sketches_are_sums_over_layers(precision, weighted, queries, way):
    kind, stored = sketches(precision, BLOCKS, COUNT)
    stored["norm"][3, 2] = stored["norm"][140, 6] = 0  # zero gradients, whose signs mean nothing
    draw = np.random.default_rng(1)
    directions = draw.standard_normal((queries, sum(BLOCKS)), np.float32)
    weights = draw.random((COUNT, len(BLOCKS)), np.float32) if weighted else None
    expected = in_doubles(BLOCKS, precision, stored, directions, weights)
    found = multiplied(kind, stored, directions, weights)
    error = ROUNDED if way == "loops" and precision == "sign" else 1e-6
    assert relative(found, expected) < error


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("blocks", [(3,), (64, 64), (5, 130), (100, 3, 60)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "sign"])
def test_few_rows_and_short_ones_are_multiplied_whole(precision, weighted, blocks, count, way):
    kind, stored = sketches(precision, blocks, count)
    # What a row's last bits say, and what lies behind the last row, must not count.
    directions = np.random.default_rng(1).standard_normal((2, sum(blocks)), np.float32)
    weights = np.ones((count, len(blocks)), np.float32) if weighted else None
    expected = in_doubles(blocks, precision, stored, directions, weights)
    found = multiplied(kind, stored, directions, weights)
    error = 10 * ROUNDED if way == "loops" and precision == "sign" else 1e-5
    assert found.shape == (count, 2)
    assert relative(found, expected) <= error


@pytest.mark.parametrize("weighted", [False, True])
def test_a_direction_with_few_large_numbers_keeps_its_small_ones(weighted, way):
    """One number of each layer is 1,000 times as large; two rows differ only in small ones."""
    sizes = (400, 600)
    kind, stored = sketches("sign", sizes, 2)
    stored["scale"][:] = 1
    stored["sketch"][1] = stored["sketch"][0]
    stored["sketch"][1, [3, 80]] ^= 0xFF
    directions = np.random.default_rng(1).standard_normal((1, 1000), np.float32)
    directions[:, [7, 777]] = 1000
    weights = np.ones((2, 2), np.float32) if weighted else None
    expected = in_doubles(sizes, "sign", stored, directions, weights)
    found = multiplied(kind, stored, directions, weights)
    change = np.diff(found, axis=0), np.diff(expected, axis=0)
    assert relative(*change) < 1e-3, way


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("precision", ["int8", "sign"])
@pytest.mark.parametrize("weighted", [False, True])
def test_long_rows_lose_nothing(precision, weighted):
    """All products have the same sign: a sum of small numbers and a large one."""
    sizes = (131_084, 262_180)
    kind, stored = sketches(precision, sizes, 3)
    stored["sketch"][:] = 127 if precision == "int8" else 0xFF
    root = np.repeat(np.sqrt(sizes), sizes).astype(np.float32)
    weights = np.array([[1, 0], [0, 1], [1, 1]], np.float32) if weighted else None
    expected = in_doubles(sizes, precision, stored, root[None], weights)
    error = ROUNDED if precision == "sign" else 1e-5
    np.testing.assert_allclose(multiplied(kind, stored, root[None], weights), expected, rtol=error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["int8", "sign"])
def test_a_direction_that_is_not_finite_gives_no_finite_score(precision, value, way):
    kind, stored = sketches(precision, (300, 20), 5)
    directions = np.ones((2, 320), np.float32)
    directions[1, 310] = value
    finite = np.isfinite(multiplied(kind, stored, directions, None))
    assert finite[:, 0].all(), way
    assert not finite[:, 1].any()


def test_many_directions_are_a_product_of_matrices(monkeypatch):
    """Whether numba is there or not, the loops are not asked for."""
    monkeypatch.setattr(products, "kernels", lambda: pytest.fail("loops for many directions"))
    kind, stored = sketches("int8", BLOCKS, 3)
    directions = np.random.default_rng(1).standard_normal((65, sum(BLOCKS)), np.float32)
    expected = in_doubles(BLOCKS, "int8", stored, directions, None)
    assert relative(multiplied(kind, stored, directions, None), expected) < 1e-6


@pytest.mark.parametrize("why", ["absent", "too old"])
def test_without_numba_products_are_those_of_floats(why, monkeypatch):
    """A numba that does not know this Python or numpy says so when it is imported."""
    monkeypatch.delitem(sys.modules, "rapidin_cli.gradients.rows.kernels", raising=False)
    if why == "absent":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
        monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    monkeypatch.delattr(rows_package, "kernels", raising=False)
    few_directions.kernels.cache_clear()
    try:
        assert few_directions.kernels() is None
        kind, stored = sketches("sign", BLOCKS, 5)
        directions = np.random.default_rng(1).standard_normal((1, sum(BLOCKS)), np.float32)
        expected = in_doubles(BLOCKS, "sign", stored, directions, None)
        assert relative(multiplied(kind, stored, directions, None), expected) < 1e-6
    finally:
        few_directions.kernels.cache_clear()


def test_loops_are_compiled_where_nothing_can_be_kept(tmp_path):
    """In another process: no folder for what was compiled, neither beside the code nor at home."""
    package = tmp_path / "kernels.py"
    package.write_bytes(Path(few_directions.__file__).with_name("kernels.py").read_bytes())
    (tmp_path / "__pycache__").write_text("a file where a folder should be")
    script = "import kernels, numpy; print(kernels.multiply_bytes.stats.cache_path)"
    home = tmp_path / "home"
    home.write_text("")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr


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
