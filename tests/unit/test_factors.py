"""Factor rows against dense singular value decompositions and dense inner products."""

import numpy as np
import pytest
import torch

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.compress.factors import factors_of_matrix, factors_of_pass
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.gradients.rows.kinds import FactorRows, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.query_gradients import query_gradient
from rapidin_cli.influence.score import SCORES, choose_score
from tests.support import tiny
from tests.support.examples import EXAMPLES, QUERY, plain_gradients
from tests.support.oracle import CPU


def decaying(batch: int, steps: int, out: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sides of gradients whose singular values fall as those of real ones do."""
    torch.manual_seed(out)
    weights = 0.6 ** torch.arange(steps)[:, None]
    return torch.randn(batch, steps, inner), torch.randn(batch, steps, out) * weights


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (8, 60), (60, 8), (3, 2)])
@pytest.mark.parametrize("steps", [1, 30])
def test_factors_are_the_best_approximation(rank, shape, steps):
    """As near as the truncated SVD (Eckart & Young), within a percent."""
    x, d = decaying(4, steps, *shape)
    dense = d.mT @ x
    for u, v in (factors_of_pass(x, d, rank), factors_of_matrix(dense, rank)):
        assert u.shape == (4, rank, shape[0])
        assert v.shape == (4, rank, shape[1])
        error = torch.linalg.matrix_norm(dense - u.mT @ v)
        values = torch.linalg.svdvals(dense)
        best = values[:, rank:].square().sum(1).sqrt()
        assert (error <= 1.01 * best + 1e-3 * values[:, 0]).all()
        norms = u.norm(dim=2)
        kept = torch.nn.functional.pad(values, (0, rank))[:, :rank]
        torch.testing.assert_close(norms, kept, rtol=2e-2, atol=1e-3 * float(values.max()))


def test_a_zero_gradient_has_zero_factors():
    u, v = factors_of_pass(torch.randn(2, 5, 30), torch.zeros(2, 5, 40), 2)
    assert (u == 0).all()
    assert torch.isfinite(v).all()


def rows(spec: GradientSpec):
    engine = GradientEngine(tiny.llama(), spec, CPU, "float32")
    kind = row_kind(engine.layout)
    assert isinstance(kind, FactorRows)
    return engine, kind, kind.encode(engine(as_batch(EXAMPLES)))


def scores(spec: GradientSpec, name: str) -> tuple[np.ndarray, np.ndarray]:
    engine, kind, stored = rows(spec)
    score = choose_score(name, engine.layout)
    query = query_gradient(engine.passes, QUERY)
    direction = engine.probe(query.layers, score.divisors(query.norm))[None]
    weights = score.row_weights(torch.from_numpy(stored["norm"]))
    found = kind.products(direction)(stored, weights)[:, 0]
    model = tiny.llama()
    asked = plain_gradients(model, QUERY.example)
    expected = []
    for item in EXAMPLES:
        gradient = plain_gradients(model, item)
        by = [
            1.0 if name == "dot" else float(q.norm() * g.norm())
            for q, g in zip(asked, gradient, strict=True)
        ]
        expected.append(
            sum(float((q * g).sum()) / n for q, g, n in zip(asked, gradient, by, strict=True))
        )
    return found.numpy(), np.array(expected)


@pytest.mark.parametrize("name", ["rapidin", "dot"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float16", 0.02), ("int8", 0.06), ("int4", 0.4)]
)
def test_scores_of_nearly_all_components_are_nearly_exact(name, precision, tolerance):
    found, expected = scores(GradientSpec(row="factors", rank=32, precision=precision), name)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_projected_sides_give_unbiased_scores():
    """The mean over seeds is near the scores without projection."""
    whole, _ = scores(GradientSpec(row="factors", rank=8, precision="float16"), "rapidin")
    found = [
        scores(
            GradientSpec(row="factors", rank=8, projection=16, precision="float16", seed=n),
            "rapidin",
        )[0]
        for n in range(24)
    ]
    error = np.std(found, axis=0) / len(found) ** 0.5
    assert (np.abs(np.mean(found, axis=0) - whole) < 4 * error + 0.05 * np.abs(whole).max()).all()


def test_four_bits_are_packed_two_a_byte():
    engine, _, stored = rows(GradientSpec(row="factors", rank=1, precision="int4"))
    layers = engine.layout.layers
    numbers = sum(layer.out_features + layer.in_features for layer in layers)
    assert stored["factors"].shape == (len(EXAMPLES), -(-numbers // 2))
    assert stored["factors"].dtype == np.uint8
    assert stored["scale"].shape == (len(EXAMPLES), len(layers))


def test_norms_are_those_of_sketch_rows():
    ours = rows(GradientSpec(row="factors", rank=1))[2]["norm"]
    engine = GradientEngine(tiny.llama(), GradientSpec(dimensions=4096), CPU, "float32")
    np.testing.assert_allclose(ours, engine(as_batch(EXAMPLES)).norm, rtol=1e-3)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="cannot be used with row"):
        GradientSpec(row="factors", precision="sign")
    with pytest.raises(InputError, match="cannot be used with row"):
        GradientSpec(precision="int4")
    with pytest.raises(InputError, match="rank must be 1 to 64"):
        GradientSpec(row="factors", rank=0)
    assert "rank" not in GradientSpec().identity()
    assert "dimensions" not in GradientSpec(row="factors").identity()
    assert set(SCORES) == {"rapidin", "dot", "cosine", "gram", "ekfac", "adam"}
