import subprocess
import sys

import pytest
import torch

from rapidin_cli.gradients.compress.hashing import bins, permutation, signs
from rapidin_cli.gradients.compress.tensorsketch import BlockSketch, block_sizes, ghost_norm

CPU = torch.device("cpu")
SHAPES = [
    (300, 260, 64),
    (24, 40, 16),
    (8, 60, 64),
    (60, 8, 64),
    (100, 30, 48),
    (5, 3, 16),
    (64, 64, 64),
]


def make(out: int, inner: int, size: int, seed: int = 0) -> BlockSketch:
    return BlockSketch("layer", out, inner, size, seed, CPU, torch.float32)


def activations(out: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, 7, inner), torch.randn(3, 7, out)


def by_definition(block: BlockSketch, gradient: torch.Tensor) -> torch.Tensor:
    """Element (o, i), signed, into bin (h2[o] + h1[i]) mod k."""
    where, sign = block.bins()
    sketch = torch.zeros(len(gradient), block.size)
    return sketch.index_add_(1, where.flatten(), (gradient * sign).flatten(1))


@pytest.mark.parametrize(("out", "inner", "size"), SHAPES)
@pytest.mark.parametrize("way", ["fourier", "matrix", "gradient", None])
def test_every_way_computes_the_definition(out, inner, size, way):
    block = make(out, inner, size)
    x, d = activations(out, inner)
    gradient = torch.einsum("bto,bti->boi", d, x)
    way = "gradient" if block.exact else way
    sketch, norm = block(x, d, way)
    torch.testing.assert_close(sketch, by_definition(block, gradient), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm, gradient.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-5)


def test_the_choice_follows_the_cost():
    assert make(8, 4096, 160).choose(200) == "gradient"  # a LoRA factor
    assert make(4096, 4096, 304).choose(200) in ("matrix", "fourier")
    assert make(512, 512, 304).choose(4000) == "gradient"  # long text: ghost norms are dear


def test_a_layer_that_fits_is_kept_exactly():
    block = make(5, 3, 16)
    x, d = activations(5, 3)
    gradient = torch.einsum("bto,bti->boi", d, x).flatten(1)
    sketch, _ = block(x, d)
    torch.testing.assert_close(sketch[:, :15], gradient)
    assert (sketch[:, 15:] == 0).all()


def test_inner_products_are_unbiased():
    """The mean over 2,000 seeds is within four standard errors of the exact value."""
    x, d = activations(20, 30)
    gradient = torch.einsum("bto,bti->boi", d, x).flatten(1)
    exact = gradient[0] @ gradient[1]
    estimates = []
    for seed in range(2000):
        sketch, _ = make(20, 30, 32, seed)(x, d, "gradient")
        estimates.append(sketch[0] @ sketch[1])
    values = torch.stack(estimates)
    error = (values.mean() - exact).abs()
    assert error < 4 * values.std() / len(values) ** 0.5
    # The error of a single sketch is that of k dimensions: |g||g'| / sqrt(k), not worse.
    bound = gradient[0].norm() * gradient[1].norm() / 32**0.5
    assert values.std() < 1.5 * bound


def test_folding_halves_the_sketch():
    """Summing bins j and j + k/2 gives the TensorSketch of k/2 with the same hashes mod k/2."""
    block = make(24, 40, 32)
    x, d = activations(24, 40)
    sketch, _ = block(x, d)
    where, sign = block.bins()
    gradient = torch.einsum("bto,bti->boi", d, x)
    half = torch.zeros(3, 16).index_add_(1, (where % 16).flatten(), (gradient * sign).flatten(1))
    torch.testing.assert_close(sketch[:, :16] + sketch[:, 16:], half, rtol=1e-4, atol=1e-4)


def test_ghost_norm_of_zero_is_zero():
    assert ghost_norm(torch.randn(2, 4, 5), torch.zeros(2, 4, 6)).tolist() == [0, 0]


def test_hashes_are_even_and_distinct_where_they_can_be():
    counts = torch.bincount(torch.from_numpy(bins(1000, 64, 0, "a")), minlength=64)
    assert counts.max() <= 16
    few = bins(20, 64, 0, "a")
    assert len(set(few.tolist())) == 20
    assert max(few) > 40  # drawn among all bins, not the first twenty
    assert abs(int(signs(10_000, 0, "a").astype(int).sum())) < 400


def test_hashes_are_the_same_in_another_process_and_for_ever():
    code = (
        "from rapidin_cli.gradients.compress.hashing import *;"
        "print(permutation(7, 0, 'x').tolist(), signs(7, 0, 'x').tolist(), "
        "bins(7, 3, 0, 'x').tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    arrays = (permutation(7, 0, "x"), signs(7, 0, "x"), bins(7, 3, 0, "x"))
    here = " ".join(str(array.tolist()) for array in arrays)
    assert other.stdout.strip() == here
    # Written down: a change would silently make every cache that exists meaningless.
    assert here == FROZEN


FROZEN = "[5, 6, 3, 2, 0, 1, 4] [-1, -1, -1, 1, 1, -1, -1] [2, 0, 2, 0, 2, 0, 1]"


def test_different_layers_and_seeds_have_different_hashes():
    assert permutation(50, 0, "x").tolist() != permutation(50, 1, "x").tolist()
    assert permutation(50, 0, "x").tolist() != permutation(50, 0, "y").tolist()


def test_blocks_are_equal_but_for_layers_that_fit():
    assert block_sizes(1000, [10_000] * 3) == [320, 336, 336]
    assert block_sizes(1000, [50, 10_000, 10_000]) == [50, 464, 480]
    assert sum(block_sizes(65_536, [4608] * 420)) <= 65_536
    assert block_sizes(1000, [10_000] * 3, [1, 8, 1]) == [96, 800, 96]
    assert block_sizes(1000, [10_000, 500, 10_000], [1, 8, 1]) == [240, 500, 256]
    assert block_sizes(64, [10_000] * 4, [1, 8, 1, 1]) == [16] * 4
    with pytest.raises(ValueError, match="too few"):
        block_sizes(100, [10_000] * 10)


def test_a_large_block_of_a_matrix_is_that_of_its_elements():
    """Where k x k numbers would be too many, elements are added to their bins."""
    block = BlockSketch("tokens", 300, 40, 4096, 0, torch.device("cpu"), torch.float32)
    gradient = torch.randn(2, 300, 40)
    where, sign = block.bins()
    expected = torch.zeros(2, 4096).index_add_(1, where.flatten(), (gradient * sign).flatten(1))
    torch.testing.assert_close(block.of_gradient(gradient)[0], expected, rtol=1e-4, atol=1e-4)
