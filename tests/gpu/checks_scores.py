"""Exact scores, curvature, and what becomes of a batch for which there is no memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from rapidin_cli.gradients.curvature import LayerCurvature, collect
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.passes import Passes, as_batch
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.exact import ExactScorer
from rapidin_cli.influence.preconditioners import Ekfac
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.query_gradients import query_gradient
from rapidin_cli.influence.score import SCORES
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.work.worker import Job, Worker
from tests.gpu.lab import CPU, KINDS, Lab, example
from tests.support import tiny

DAMPING = 0.1


def exact_scores(lab: Lab) -> None:
    """Totals, generated tokens, training tokens and cells; forward mode against backward."""
    contrast = replace(lab.query, contrast=example(51, 9, 4))
    cases = [*product(KINDS, ("rapidin", "dot", "cosine")), ("gpt2", "rapidin")]
    for kind, score in cases:
        _exact(lab, f"{kind}, {score}", kind, score, lab.query)
    _exact(lab, "lora, dot, contrast", "lora", "dot", contrast)


def _exact(lab: Lab, name: str, kind: str, score: str, query: Query) -> None:
    ours, theirs = (_scorer(lab.model(kind), score, query, device) for device in (lab.device, CPU))
    items = lab.examples
    found, expected = (scorer.scores(items, tokens=True) for scorer in (ours, theirs))
    scale = float(expected.tokens.abs().sum(1).max())

    def near(what: str, a: torch.Tensor, b: torch.Tensor, at_most: float) -> None:
        lab.near(f"{name}: {what}", (a - b).abs().max() / scale, at_most)

    lab.true(f"{name}: forward mode works", ours.forward_mode)
    near("totals", found.totals, expected.totals, 1e-3)
    near("generated tokens", found.tokens, expected.tokens, 1e-3)
    near("generated tokens add up", found.tokens.sum(1), found.totals, 1e-4)
    training = ours.training_tokens(items, found.factors)
    near(
        "training tokens",
        torch.cat(training),
        torch.cat(theirs.training_tokens(items, expected.factors)),
        1e-3,
    )
    near("training tokens add up", torch.stack([t.sum() for t in training]), found.totals, 1e-4)
    cells = ours.cells(items[0], found.factors[0])
    near("cells add up", cells.sum(1), found.tokens[0], 1e-4)
    ours.forward_mode = False  # as after an operator without a derivative: a backward pass each
    near("one backward a token", ours.scores(items, tokens=True).tokens, found.tokens, 1e-3)


def exact_in_bfloat16(lab: Lab) -> None:
    """The same with weights in bfloat16, as large models are loaded, under autocast."""
    for kind in KINDS:
        model = lab.model(kind)
        for name, parameter in model.named_parameters():
            if "lora" not in name:  # adapters stay in float32
                parameter.data = parameter.data.bfloat16()
        passes = Passes(model.to(lab.device), "", lab.device, "bfloat16").exactly()
        gradient = query_gradient(passes, lab.query)
        ours = ExactScorer(passes, SCORES["rapidin"], None, lab.query, gradient, 512)
        theirs = _scorer(lab.model(kind), "rapidin", lab.query, CPU)
        found, expected = (side.scores(lab.examples, tokens=True) for side in (ours, theirs))
        training = torch.stack([t.sum() for t in ours.training_tokens(lab.examples, found.factors)])
        scale = float(expected.tokens.abs().sum(1).max())
        lab.true(f"{kind}: forward mode works", ours.forward_mode)
        for what, a, b in (
            ("totals", found.totals, expected.totals),
            ("generated tokens", found.tokens, expected.tokens),
            ("generated tokens add up", found.tokens.sum(1), found.totals),
            ("training tokens add up", training, found.totals),
        ):
            lab.near(f"{kind}: {what}", (a - b).abs().max() / scale, 0.1)


def _scorer(
    model: Any, score: str, query: Query, device: torch.device, inverse: Any = None
) -> ExactScorer:
    passes = Passes(model.to(device), "", device, "float32")
    gradient = query_gradient(passes, query)
    return ExactScorer(passes, SCORES[score], inverse, query, gradient, 512)


def curvature(lab: Lab) -> None:
    """EK-FAC, by what it makes of a gradient: its bases are free to turn.

    Loose, since rounding decides whether the first token of a text counts for the query
    projection of the first layer: its output gradient is zero there, or nearly so.
    """
    loose = 0.5 if lab.small else 0.03
    lengths = (5, 14) if lab.small else (20, 140)
    data = [example(100 + n, lengths[0] + 7 * n % (lengths[1] - lengths[0])) for n in range(24)]
    for kind in KINDS:
        sides = {device: _collected(lab, kind, data, device) for device in (lab.device, CPU)}
        found, expected = sides[lab.device], sides[CPU]
        away = [apart_turned(a, b) for a, b in zip(found, expected, strict=True)]
        lab.near(f"{kind}: what becomes of a gradient", max(away), loose)
        scores = {}
        for device, layers in sides.items():
            inverse = Ekfac(layers, DAMPING, device)
            scorer = _scorer(lab.model(kind), "ekfac", lab.query, device, inverse)
            made = scorer.scores(lab.examples, tokens=True)
            scores[device] = made
            scale = float(made.tokens.abs().sum(1).max())
            rest = (made.tokens.sum(1) - made.totals).abs().max() / scale
            lab.near(f"{kind}: tokens add up on {device}", rest, 1e-3)
        ours, theirs = scores[lab.device].totals, scores[CPU].totals
        lab.near(f"{kind}: scores", (ours - theirs).abs().max() / theirs.abs().max(), loose)
        drawn = [_collected(lab, kind, data, lab.device, sampled=True) for _ in range(2)]
        same = max(apart_values(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
        lab.near(f"{kind}: labels drawn twice with one seed", same, 1e-2)


def _collected(
    lab: Lab, kind: str, data: Sequence[Any], device: torch.device, *, sampled: bool = False
) -> list[LayerCurvature]:
    passes = Passes(lab.model(kind).to(device), "", device, "float32")
    batches = [as_batch(data[n : n + 5]) for n in range(0, len(data), 5)]
    return collect(passes, batches, sampled=sampled)


def apart_turned(ours: LayerCurvature, theirs: LayerCurvature) -> float:
    """How far two curvatures of a layer are apart in what they make of one gradient."""
    out, inner = theirs.values.shape
    generator = torch.Generator().manual_seed(out + inner)
    gradient = torch.randn(1, out, inner, generator=generator)
    made = [
        Ekfac([layer], DAMPING, layer.values.device).change(
            0, LayerGradient.of_matrix(gradient.to(layer.values.device))
        )
        for layer in (ours, theirs)
    ]
    if not theirs.values.any():
        return float(made[0].abs().max())
    return float((made[0].cpu() - made[1]).norm() / made[1].norm())


def apart_values(ours: LayerCurvature, theirs: LayerCurvature) -> float:
    """How far two curvatures of a layer are apart in size."""
    sizes = [float(layer.values.norm()) for layer in (ours, theirs)]
    return abs(sizes[0] - sizes[1]) / max(sizes[1], 1e-30)


def too_little_memory(lab: Lab) -> None:
    """A batch that does not fit is halved until it does, and so are the next ones."""
    folder = lab.folder / "memory"
    tiny.project(folder, 2)
    checkpoint = Checkpoint("tuned", folder / "adapter", folder / "base")
    spec = GradientSpec(dimensions=2048, precision="float16")
    worker = Worker(Job(checkpoint, spec, str(lab.device), 0, "float32"))
    worker.limit = 10**9  # nothing is cut beforehand
    length = 1024 if lab.device.type == "cuda" else 64
    ids = np.random.default_rng(0).integers(1, 300, (64, length))
    worker.rows((ids[:1], ids[:1]))
    engine: Any = worker.engine
    sizes: list[int] = []

    def watched(batch: Any) -> Any:
        sizes.append(len(batch.input_ids))
        return engine(batch)

    worker.engine = watched  # type: ignore[assignment]
    for room in (20, 10, 5):
        sizes.clear()
        with scarce(lab, watched, worker, worker.takes.of(room * length)):
            short = worker.rows((ids, ids))
        if len(sizes) > 1:
            break
    lab.note("sizes tried", list(sizes))
    lab.note("bytes of room", worker.takes.of(room * length))
    lab.note("an error that was made up", lab.device.type != "cuda")
    lab.true("halved", sizes[:2] == [64, 32])
    worker.engine = watched  # type: ignore[assignment]
    sizes.clear()
    plenty = worker.rows((ids, ids))
    lab.true("no later part is larger", max(sizes) <= 32)
    away = [np.abs(short[n].astype(float) - plenty[n].astype(float)).max() for n in plenty]
    sizes_of = [np.abs(plenty[n].astype(float)).max() for n in plenty]
    lab.near("rows", max(a / s for a, s in zip(away, sizes_of, strict=True)), 1e-2)


@contextmanager
def scarce(lab: Lab, engine: Any, worker: Worker, room: int) -> Iterator[None]:
    """Leave so many bytes of the device; elsewhere an engine that takes few rows stands in."""
    if lab.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(lab.device).total_memory
        taken = torch.cuda.memory_reserved(lab.device) + room
        torch.cuda.set_per_process_memory_fraction(min(1.0, taken / total), lab.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, lab.device)
        return

    def refuse(batch: Any) -> Any:
        made = engine(batch)
        if len(batch.input_ids) > 20:
            raise torch.OutOfMemoryError("made up")
        return made

    worker.engine = refuse  # type: ignore[assignment]
    yield
