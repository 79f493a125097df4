"""Rows on the device against rows on the CPU, both in float32, and stored rows' scores."""

from itertools import product
from typing import Any

import numpy as np
import torch

from rapidin_cli.gradients.layout import GradientRows, RowLayout
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.gradients.rows.kinds import SketchRows, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.query_gradients import query_gradient
from rapidin_cli.influence.score import SCORES
from tests.gpu.lab import CPU, EXACT, KINDS, Lab, apart

SKETCHES = "tensorsketch", "oporp"
NEAR_ZERO = 1e-3  # of the row's largest number: below, rounding decides on the sign


def sketch_rows(lab: Lab) -> None:
    """Sketches, norms and losses; as stored; and a row alone against the same in a batch."""
    batch = as_batch(lab.examples)
    for kind, sketch in product((*KINDS, "gpt2"), SKETCHES):
        name = f"{kind}, {sketch}"
        spec = GradientSpec(dimensions=4096, sketch=sketch)
        engine = lab.engine(kind, spec, lab.device)
        found, expected = engine(batch), lab.engine(kind, spec, CPU)(batch)
        _same(lab, name, found, expected)
        lab.near(f"{name}: sketches", apart(found.blocks, expected.blocks), 1e-3)
        for precision in ("int8", "float16", "sign"):
            layout = _stored_as(engine.layout, precision)
            _same_stored(lab, f"{name}, {precision}", layout, found, expected)
        alone = [engine(as_batch([item])).blocks for item in lab.examples]
        lab.near(f"{name}: a row alone", apart(torch.cat(alone), found.blocks), 1e-3)


def factor_rows(lab: Lab) -> None:
    """Factors approximate the gradient as well as those of the CPU do.

    Where two singular values are close, other factors are as good, so factors themselves are
    not compared.
    """
    batch = as_batch(lab.examples)
    for kind, projection in product(KINDS, (0, 24)):
        name = f"{kind}, sides of {projection}" if projection else kind
        spec = GradientSpec(row="factors", rank=4, projection=projection)
        engine = lab.engine(kind, spec, lab.device)
        found, expected = engine(batch), lab.engine(kind, spec, CPU)(batch)
        _same(lab, name, found, expected)
        if projection:  # of what they are near to there is no other form
            sizes = [_energy(engine.layout, rows) for rows in (found, expected)]
            lab.near(f"{name}: energy kept", (sizes[0] - sizes[1]).abs().max(), 1e-2)
            continue
        whole = lab.engine(kind, EXACT, CPU)(batch)
        errors = [_errors(engine.layout, rows, whole) for rows in (found, expected)]
        lab.near(f"{name}: error beyond the CPU's", (errors[0] - errors[1]).max(), 1e-2)
        alone = [engine(as_batch([item])) for item in lab.examples]
        single = torch.cat([_errors(engine.layout, row, whole, n) for n, row in enumerate(alone)])
        lab.near(f"{name}: a row alone", (single - errors[0]).abs().max(), 3e-2)


def bfloat16(lab: Lab) -> None:
    """Rows of a model that is run under autocast stay near those in float32."""
    batch = as_batch(lab.examples)
    for kind in KINDS:
        for name, spec in {
            "whole gradients": EXACT,
            "tensorsketch": GradientSpec(dimensions=4096),
            "oporp": GradientSpec(dimensions=4096, sketch="oporp"),
        }.items():
            rough = lab.engine(kind, spec, lab.device, "bfloat16")(batch)
            exact = lab.engine(kind, spec, CPU)(batch)
            cosine = torch.nn.functional.cosine_similarity(rough.blocks, exact.blocks)
            lab.near(f"{kind}, {name}: 1 - cosine", 1 - cosine.min(), 0.01)
            # Layer by layer, small norms are rounded most: by what the whole row has.
            norms = apart(rough.norm, exact.norm)
            lab.near(f"{kind}, {name}: norms", norms, 0.1)
            lab.near(f"{kind}, {name}: losses", apart(rough.loss, exact.loss), 0.01)
        spec = GradientSpec(row="factors", rank=4)
        rough = lab.engine(kind, spec, lab.device, "bfloat16")(batch)
        layout = lab.engine(kind, spec, CPU).layout
        whole = lab.engine(kind, EXACT, CPU)(batch)
        best = lab.engine(kind, spec, CPU)(batch)
        more = _errors(layout, rough, whole) - _errors(layout, best, whole)
        lab.near(f"{kind}, factors: mean error beyond the CPU's", more.mean(), 0.1)


def products(lab: Lab) -> None:
    """What multiplies stored rows, on the device, against float64 and against the CPU's."""
    batch = as_batch(lab.examples)
    for kind, sketch, precision in product(KINDS, SKETCHES, ("int8", "float16", "sign")):
        spec = GradientSpec(dimensions=4096, sketch=sketch, precision=precision)
        _sketch_products(lab, f"{kind}, {sketch}, {precision}", kind, spec, batch)
    for kind, precision in product(KINDS, ("int8", "float16", "int4")):
        spec = GradientSpec(row="factors", rank=4, precision=precision)
        stored, direction, weights, layout = _asked(lab, kind, spec, batch)
        made = row_kind(layout)
        for name, weight in weights.items():
            ours = made.products(direction, lab.device)(stored, weight).cpu()
            theirs = made.products(direction)(stored, weight)
            scale = float(theirs.abs().max())
            away = float((ours - theirs).abs().max()) / scale
            lab.near(f"{kind}, factors, {precision}: {name}", away, 1e-2)


def _sketch_products(lab: Lab, name: str, kind: str, spec: GradientSpec, batch: Any) -> None:
    stored, direction, weights, layout = _asked(lab, kind, spec, batch)
    made = SketchRows(layout)
    blocks = made.values(stored).double()
    for score, weight in weights.items():
        if weight is not None and not layout.per_layer:
            continue  # its rows mix all layers
        each = torch.ones(len(blocks), len(layout.layers)) if weight is None else weight
        sizes = torch.tensor(layout.blocks)
        factors = torch.repeat_interleave(each, sizes, 1) if layout.per_layer else 1.0
        expected = (blocks * factors) @ direction.double().T
        found = made.products(direction, lab.device)(stored, weight).cpu()
        away = (found - expected).abs().max() / expected.abs().max()
        lab.near(f"{name}: {score}", away, 1e-3)
        on_device = {key: torch.from_numpy(values).to(lab.device) for key, values in stored.items()}
        held = made.products(direction, lab.device)(on_device, weight).cpu()
        away = (held - found).abs().max() / expected.abs().max()
        lab.near(f"{name}: {score}, held", away, 1e-5)


def _asked(lab: Lab, kind: str, spec: GradientSpec, batch: Any) -> tuple[Any, ...]:
    """Stored rows, directions (3, W), the weights of two scores, and the layout: the CPU's."""
    engine = lab.engine(kind, spec, CPU)
    stored = row_kind(engine.layout).encode(engine(batch))
    query = query_gradient(engine.passes, lab.query)
    direction = engine.probe(query.layers, query.norm)[None]
    norm = torch.from_numpy(stored["norm"])
    weights = {name: SCORES[name].row_weights(norm) for name in ("rapidin", "dot")}
    return stored, torch.cat([direction, -direction, 2 * direction]), weights, engine.layout


def _same(lab: Lab, name: str, found: GradientRows, expected: GradientRows) -> None:
    """Compare what rows of all kinds have."""
    lab.near(f"{name}: norms", apart(found.norm, expected.norm), 1e-3)
    lab.near(f"{name}: losses", apart(found.loss[:, None], expected.loss[:, None]), 1e-4)
    lab.true(f"{name}: numbers of tokens", torch.equal(found.tokens, expected.tokens))
    lab.true(f"{name}: finite", bool(torch.isfinite(found.blocks).all()))


def _stored_as(layout: RowLayout, precision: Any) -> RowLayout:
    spec = layout.spec
    made = GradientSpec(dimensions=spec.dimensions, sketch=spec.sketch, precision=precision)
    return RowLayout(made, layout.layers, layout.blocks)


def _same_stored(
    lab: Lab, name: str, layout: RowLayout, found: GradientRows, expected: GradientRows
) -> None:
    made = SketchRows(layout)
    ours, theirs = made.encode(found)["sketch"], made.encode(expected)["sketch"]
    match layout.spec.precision:
        case "int8":
            steps = np.abs(ours.astype(int) - theirs.astype(int))
            lab.near(f"{name}: steps apart", steps.max(), 1)
            lab.near(f"{name}: share a step apart", (steps > 0).mean(), 0.01)
        case "float16":
            pair = (torch.from_numpy(part).float() for part in (ours, theirs))
            lab.near(f"{name}: apart", apart(*pair), 2e-3)
        case _:
            size = expected.blocks.abs().numpy()
            sure = size > NEAR_ZERO * size.max(1, keepdims=True)
            other = np.unpackbits(ours ^ theirs, axis=1, count=size.shape[1]) > 0
            lab.near(f"{name}: other signs", (other & sure).sum(), 0)


def _factors(layout: RowLayout, row: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's u (c, O) and v (c, I)."""
    rank = layout.spec.rank
    made = []
    for block, (out, inner) in zip(row.split(list(layout.blocks)), layout.sides, strict=True):
        u, v = block.double().split([rank * out, rank * inner])
        made.append((u.view(rank, out), v.view(rank, inner)))
    return made


def _errors(
    layout: RowLayout, rows: GradientRows, whole: GradientRows, first: int = 0
) -> torch.Tensor:
    """Distance of each layer's factors from its normalised gradient, (B, L)."""
    errors = []
    for row, exact in zip(rows.blocks, whole.blocks[first:], strict=False):
        gradients = exact.double().split([layer.size for layer in layout.layers])
        errors.append(
            [
                float(torch.linalg.matrix_norm(u.T @ v - gradient.view(u.shape[1], -1)))
                for (u, v), gradient in zip(_factors(layout, row), gradients, strict=True)
            ]
        )
    return torch.tensor(errors)


def _energy(layout: RowLayout, rows: GradientRows) -> torch.Tensor:
    """Norm of each layer's factors, (B, L)."""
    return torch.tensor(
        [
            [float(torch.linalg.matrix_norm(u.T @ v)) for u, v in _factors(layout, row)]
            for row in rows.blocks
        ]
    )
