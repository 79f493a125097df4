import numpy as np
import pytest
import torch

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.layout import GradientRows, Layer, RowLayout
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec

LAYERS = (Layer("a", 8, 8), Layer("b", 40, 40), Layer("c", 40, 40))
BLOCKS = (64, 400, 400)


def gradient_rows(count: int = 20) -> GradientRows:
    torch.manual_seed(0)
    blocks = torch.cat(
        [torch.nn.functional.normalize(torch.randn(count, k), dim=1) for k in BLOCKS], 1
    )
    return GradientRows(
        blocks, torch.rand(count, 3) + 0.5, torch.rand(count), torch.arange(count), []
    )


def kind(precision: str):
    return row_kind(RowLayout(GradientSpec(precision=precision), LAYERS, BLOCKS))


@pytest.mark.parametrize(
    ("precision", "agreement", "width"),
    [("int8", 0.9999, 864), ("float16", 0.99999, 864), ("sign", 0.95, 108)],
)
def test_stored_rows_give_nearly_the_same_products(precision, agreement, width):
    rows = gradient_rows()
    stored = kind(precision).encode(rows)
    assert stored["sketch"].shape == (20, width)
    directions = rows.blocks[:5]
    exact = (rows.blocks @ directions.T).flatten()
    products = kind(precision).products(directions)(stored, None).flatten()
    assert torch.corrcoef(torch.stack([exact, products]))[0, 1] > agreement


@pytest.mark.parametrize("precision", ["int8", "float16", "sign"])
def test_weights_multiply_each_layer(precision):
    rows = gradient_rows()
    stored = kind(precision).encode(rows)
    weights = torch.rand(20, 3)
    parts = []
    for n, start in enumerate((0, 64, 464)):
        only = torch.zeros_like(rows.blocks[:4])
        only[:, start : start + BLOCKS[n]] = rows.blocks[:4, start : start + BLOCKS[n]]
        parts.append(kind(precision).products(only)(stored, None) * weights[:, n : n + 1])
    products = kind(precision).products(rows.blocks[:4])(stored, weights)
    torch.testing.assert_close(products, sum(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "float16", "sign"])
def test_zero_gradients_score_zero(precision):
    rows = gradient_rows(3)
    rows.blocks[1] = 0
    rows.norm[1] = 0
    rows.blocks[2, :64] = 0
    rows.norm[2, 0] = 0
    stored = kind(precision).encode(rows)
    direction = torch.zeros(1, 864)
    direction[0, :64] = 1
    products = kind(precision).products(direction)(stored, None)[:, 0]
    assert torch.isfinite(products).all()
    assert products[1] == 0
    assert products[2] == 0
    assert products[0] != 0


def test_arrays_match_what_is_encoded():
    for precision in ("int8", "float16", "sign"):
        stored = kind(precision).encode(gradient_rows())
        specs = kind(precision).arrays()
        assert set(stored) == set(specs)
        for name, spec in specs.items():
            assert stored[name].dtype == np.dtype(spec.dtype)
            assert stored[name].shape[1:] == spec.row_shape


def test_specs_refuse_what_they_do_not_know():
    with pytest.raises(InputError, match="precision"):
        GradientSpec(precision="int3")
    with pytest.raises(InputError, match="dimensions"):
        GradientSpec(dimensions=1001)


def test_the_identity_holds_only_what_changes_rows():
    assert "rounds" not in GradientSpec().identity()
    assert GradientSpec(sketch="oporp").identity()["rounds"] == 20
    assert GradientSpec(seed=1).identity() != GradientSpec().identity()
