"""Output gradients that are never formed whole, against the ones that are."""

import pytest
import torch

from rapidin_cli.gradients.capture import wide
from rapidin_cli.gradients.capture.blocks import BlocksSide
from rapidin_cli.gradients.capture.sides import WideSide, joined, taken
from rapidin_cli.gradients.capture.wide import Formed, Softmax, WordsSide
from rapidin_cli.gradients.compress.factors import factors_of_pass, factors_of_wide
from rapidin_cli.gradients.compress.hashing import CountSketch
from rapidin_cli.gradients.compress.tensorsketch import BlockSketch, ghost_norm
from rapidin_cli.gradients.directions import LayerGradient
from tests.support.oracle import CPU

WORDS, HIDDEN, BATCH, LEARNT, READ = 50, 6, 3, 4, 7


def softmax(model_factor: float = 1.0) -> tuple[Softmax, torch.Tensor]:
    """The output layer's use, and its numbers by autograd."""
    torch.manual_seed(0)
    hidden = torch.randn(BATCH, LEARNT, HIDDEN)
    weight = torch.randn(WORDS, HIDDEN)
    targets = torch.randint(0, WORDS, (BATCH, LEARNT))
    factors = torch.rand(BATCH, LEARNT) * model_factor
    factors[2, 3] = 0  # padding
    logits = (hidden @ weight.T).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    [formed] = torch.autograd.grad((loss * factors.flatten()).sum(), logits)
    logs = logits.detach().logsumexp(2)
    return Softmax(hidden, weight, logs, targets, factors, lambda x, w: x @ w.T), formed


def sides() -> dict[str, tuple[WideSide, torch.Tensor]]:
    """Each kind of side, and the same formed."""
    dense, formed = softmax()
    torch.manual_seed(1)
    ids = torch.randint(0, WORDS, (BATCH, READ))
    ones = torch.nn.functional.one_hot(ids, WORDS).float()
    looked_up, said = WordsSide(WORDS, ids=ids), WordsSide(WORDS, dense)
    both, order = WordsSide.merged([looked_up, said])
    assert order == [1, 0]
    twice, _ = WordsSide.merged([said, WordsSide(WORDS, Formed(formed))])
    return {
        "an output layer": (said, formed),
        "logits that exist": (WordsSide(WORDS, Formed(formed)), formed),
        "an embedding": (looked_up, ones),
        "both": (both, torch.cat([formed, ones], 1)),
        "kept": (both.kept(), torch.cat([formed, ones], 1)),
        "used twice": (twice, torch.cat([formed, formed], 1)),
        "experts": experts(),
    }


def experts() -> tuple[WideSide, torch.Tensor]:
    """Five matrices of ten outputs, and each row's choice."""
    torch.manual_seed(2)
    values, blocks = torch.randn(BATCH, READ, 10), torch.randint(0, 5, (BATCH, READ))
    formed = torch.zeros(BATCH, READ, 5, 10)
    formed.scatter_(2, blocks[..., None, None].expand(-1, -1, 1, 10), values[:, :, None])
    return BlocksSide(values, blocks, 5), formed.flatten(2)


@pytest.fixture(params=list(sides()))
def pair(request, monkeypatch):
    monkeypatch.setattr(wide, "PIECE", 16)  # the vocabulary comes in four pieces
    return sides()[request.param]


def near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_its_products_are_those_of_its_numbers(pair):
    side, formed = pair
    assert side.shape == formed.shape
    whole = torch.zeros_like(formed)
    for where, values in side.pieces():
        whole[..., where] = values
    near(whole, formed)
    x, gradients = (
        torch.randn(*formed.shape[:2], HIDDEN),
        torch.zeros(BATCH, formed.shape[2], HIDDEN),
    )
    for where, values in side.gradients(x):
        gradients[:, where] = values
    near(gradients, formed.mT @ x)
    near(side.gram(), formed @ formed.mT)
    matrix = torch.randn(WORDS, 5)
    near(side.along(matrix), formed @ matrix)
    matrices = torch.randn(BATCH, WORDS, 5)
    near(side.along(matrices), formed @ matrices)
    factors = torch.randn(BATCH, 2, formed.shape[1])
    near(side.combined(factors), factors @ formed)
    ids = torch.randint(0, WORDS, (BATCH, 9))
    near(side.columns(ids), taken(formed.mT, ids).mT)
    near(side.pick(slice(1, 3)).gram(), (formed @ formed.mT)[1:])


def test_all_rows_as_one_have_the_same_gradient(pair):
    side, formed = pair
    x = torch.randn(*formed.shape[:2], HIDDEN)
    whole = LayerGradient.of(*joined(x, side))
    near(whole.dense()[0], (formed.mT @ x).sum(0))
    near(whole.norm()[0], (formed.mT @ x).sum(0).norm())


def test_a_gradient_is_that_of_its_matrices(pair):
    side, formed = pair
    x = torch.randn(*formed.shape[:2], HIDDEN)
    gradient, matrices = LayerGradient.of(x, side), formed.mT @ x
    near(gradient.dense(), matrices)
    near(ghost_norm(x, side), matrices.flatten(1).norm(dim=1))
    inputs = torch.randn(BATCH, 5, HIDDEN)
    near(gradient.along(inputs), inputs @ matrices.mT)
    near(gradient.pick(slice(0, 1)).along(inputs), inputs @ matrices[:1].mT)
    ids = torch.randint(0, WORDS, (BATCH, 5))
    near(gradient.of_words(ids), taken(matrices, ids))
    near(gradient.pick(slice(0, 1)).of_words(ids), matrices[0][ids])
    factors = torch.tensor([2.0, -1.0, 0.5])
    near(gradient.scaled(factors).dense(), matrices * factors[:, None, None])


@pytest.mark.parametrize("way", ["fourier", "matrix", "gradient"])
def test_its_sketch_is_that_of_the_matrices(pair, way):
    side, formed = pair
    x = torch.randn(*formed.shape[:2], HIDDEN)
    block = BlockSketch("tokens", WORDS, HIDDEN, 32, 0, CPU, torch.float32)
    sketch, norm = block(x, side, way)
    expected, length = block.of_gradient(formed.mT @ x)
    near(sketch, expected)
    near(norm, length)


def test_a_sketch_of_pieces_is_that_of_the_whole():
    sketch = CountSketch.make(WORDS, 16, 3, "words")
    values = torch.randn(WORDS, 5)
    pieces = sketch.pieces(CPU)
    parts = [pieces.part(n, n + 10, values[n : n + 10]) for n in range(0, WORDS, 10)]
    near(sum(parts), sketch.bags(CPU, torch.float32)(values))
    ids = torch.randint(0, WORDS, (2, 3))
    ones = torch.nn.functional.one_hot(ids, WORDS).float()
    near(pieces.of_ones(ids), pieces.part(0, WORDS, ones.flatten(0, 1).T).T.view(2, 3, 16))


def test_its_factors_are_those_of_the_numbers(pair):
    side, formed = pair
    x = torch.randn(*formed.shape[:2], 24)
    u, v = factors_of_wide(x, side, 3)
    theirs = factors_of_pass(x, formed, 3)
    near(u.mT @ v, theirs[0].mT @ theirs[1])
