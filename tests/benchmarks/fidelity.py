"""Do cached rows shortlist what whole gradients rank first, on a model of real size?

    python tests/smollm2.py FOLDER alpaca_en_demo.json 500 30
    python tests/benchmarks/fidelity.py FOLDER --data alpaca_en_demo.json [--rows 500]
    python tests/benchmarks/fidelity.py FOLDER --data alpaca_en_demo.json --sizes [--full]

One pass over the rows takes their exact scores for some queries and makes every kind of row
of the same gradients. Printed is, for each score and kind: bytes a row, the rank correlation
with the exact scores, the share of the exact top 20 (of each sign) among its own 80, for how
many queries exact re-scoring of those gives the exact top 20, and for how many that of the
shortlist as `rin retrieve` lets it grow, with its length. No tokens are shortlisted here.

`--sizes` judges rows of many sizes instead: recall of the exact top 20 among a row's own 20, 40
and 80, and how many times smaller than a 7 B model's float32 gradient such a row of its is (the
paper says 200,000). `--full` takes the gradients of all linear layers' weights of the base model,
not of its LoRA's: 106 million numbers a query, so ask few (`--queries 8`).
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example, plan_batches
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.data.shapes import parse_row
from rapidin_cli.evaluation.metrics import spearman
from rapidin_cli.gradients import curvature
from rapidin_cli.gradients.compress.tensorsketch import block_sizes
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.layout import GradientRows, Layer, RowLayout
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.gradients.rows.kinds import RowKind, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.preconditioners import Ekfac
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.query_gradients import query_gradient
from rapidin_cli.influence.ranking import Ranked, extremes
from rapidin_cli.influence.score import SCORES
from rapidin_cli.influence.shortlist import GROWTH, doubtful
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model, load_tokenizer

CPU = torch.device("cpu")
TOP, SHORTLIST = 20, 80
SPECS = {
    "sketch 65,536, float16": GradientSpec(precision="float16"),
    "sketch 65,536, int8": GradientSpec(),
    "sketch 65,536, sign": GradientSpec(precision="sign"),
    "factors, rank 1, int4": GradientSpec(row="factors", rank=1, precision="int4"),
    "factors, rank 2, int4": GradientSpec(row="factors", rank=2, precision="int4"),
    "factors, rank 4, int4": GradientSpec(row="factors", rank=4, precision="int4"),
}
SIZES = {
    **{
        f"sketch {size:,}, {precision}": GradientSpec(dimensions=size, precision=precision)
        for size in (8_192, 16_384, 65_536, 262_144)
        for precision in ("sign", "int8", "float16")
    },
    "factors, rank 1, int4": GradientSpec(row="factors", rank=1, precision="int4"),
    "factors, rank 1, int8": GradientSpec(row="factors", rank=1, precision="int8"),
    "factors, rank 2, int4": GradientSpec(row="factors", rank=2, precision="int4"),
    "factors, rank 4, int4": GradientSpec(row="factors", rank=4, precision="int4"),
    "factors, 1 x 64, int4": GradientSpec(row="factors", rank=1, projection=64, precision="int4"),
}
GRADIENT_7B = 26.95e9  # bytes, of Llama-2-7B in float32, as in the paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="at most, of a row")
    parser.add_argument("--scores", nargs="+", default=["rapidin", "dot", "ekfac"])
    parser.add_argument("--sizes", action="store_true", help="rows of many sizes")
    parser.add_argument("--full", action="store_true", help="of all weights, not of the LoRA")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = Checkpoint("smollm2", options.folder / "base", None)
    if not options.full:
        adapter = next((options.folder / "out").glob("checkpoint-*"))
        checkpoint = Checkpoint("smollm2", adapter, options.folder / "base")
    specs = SIZES if options.sizes else SPECS
    rows, asked = read(checkpoint, options)
    start = time.monotonic()
    engines = make_engines(checkpoint, specs)
    first = next(iter(engines.values()))
    queries = [query_gradient(first.passes, Query("", "given", q)) for q in asked]
    plan = plan_batches(rows, (), 2048)
    batches = [as_batch(part) for part in plan]
    tokens = sum(len(example.input_ids) for example in rows)
    print(f"{len(rows)} rows, {tokens:,} tokens, {len(queries)} queries", flush=True)
    inverse = None
    if "ekfac" in options.scores:
        # Of a quarter of the rows: it is the rows that are judged here, not the curvature.
        layers = curvature.collect(first.passes, batches[::4], sampled=False)
        inverse = Ekfac(layers, SCORES["ekfac"].damping, CPU)
        print(f"curvature: {time.monotonic() - start:.0f} s", flush=True)
    kinds = {
        label: row_kind(replace(engine.layout, spec=specs[label]))
        for label, engine in engines.items()
    }
    exact, stored = one_pass(engines, kinds, queries, inverse, batches)
    print(f"with the rows: {time.monotonic() - start:.0f} s", flush=True)
    kept = {f"{name} exact": exact[name] for name in options.scores}
    for name in options.scores:
        for label, engine in engines.items():
            found, sizes = scanned(engine, kinds[label], stored[label], queries, inverse, name)
            kept[f"{name} {label}"], kept[f"{name} sizes"] = found, sizes
            size = sum(values[0].nbytes for values in stored[label].values())
            if options.sizes:
                smaller = GRADIENT_7B / bytes_at_7b(specs[label], full=options.full)
                verdict = f"7 B: 1 / {smaller:9,.0f}  {recalls(found, exact[name])}"
            else:
                verdict = judge(found, sizes, exact[name])
            print(f"{name:8} {label:24} {size:9,} bytes  {verdict}", flush=True)
    np.savez(options.folder / "fidelity.npz", **kept)  # type: ignore[arg-type]


def bytes_at_7b(spec: GradientSpec, *, full: bool) -> int:
    """The bytes of such a row for Llama-2-7B: factors grow with the layers, sketches do not."""
    hidden, inner, blocks = 4096, 11_008, 32
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    if not full:
        shapes = [pair for out, into in shapes for pair in ((8, into), (out, 8))]
    layers = tuple(Layer(str(n), *shape) for n, shape in enumerate(shapes * blocks))
    sizes = [layer.size for layer in layers]
    if spec.row == "sketch":
        layout = RowLayout(spec, layers, tuple(block_sizes(spec.dimensions, sizes)))
    else:
        sides = RowLayout(spec, layers, ()).sides
        layout = RowLayout(spec, layers, tuple(spec.rank * sum(pair) for pair in sides))
    return sum(array.row_bytes for array in row_kind(layout).arrays().values())


def read(
    checkpoint: Checkpoint, options: argparse.Namespace
) -> tuple[list[Example], list[Example]]:
    """The first rows, and as many others from the end as queries."""
    settings = DataSettings(template="chat", max_tokens=options.tokens)
    encoder = Encoder(load_tokenizer(checkpoint), settings)
    values = json.loads(options.data.read_text())
    count = options.rows
    chosen = [*values[:count], *values[-options.queries :]]
    parsed = (parse_row(v, "alpaca", settings, "data", n) for n, v in enumerate(chosen))
    made = list(encoder.examples(parsed))
    rows = [e for e in made[:count] if isinstance(e, Example)]
    return rows, [e for e in made[count:] if isinstance(e, Example)]


def make_engines(
    checkpoint: Checkpoint, specs: dict[str, GradientSpec]
) -> dict[str, GradientEngine]:
    """An engine for each kind of row, all around the same model; one for all its precisions."""
    model: Any = load_model(checkpoint, "cpu")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made: dict[GradientSpec, GradientEngine] = {}
    engines = {}
    for label, spec in specs.items():
        plain = replace(spec, precision="int8", capture="linear")
        if plain not in made:
            for parameter in trained:
                parameter.requires_grad_(True)
            made[plain] = GradientEngine(model, plain, CPU, "float32")
        engines[label] = made[plain]
    return engines


def one_pass(
    engines: dict[str, GradientEngine],
    kinds: dict[str, RowKind],
    queries: list[Any],
    inverse: Ekfac | None,
    batches: list[Any],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Exact scores (N, Q) by name, and the stored arrays of every kind of row."""
    passes = next(iter(engines.values())).passes
    plain = [
        torch.stack([q.layers[n].dense()[0] for q in queries]) for n in range(len(passes.targets))
    ]
    curved = [
        inverse.change(n, LayerGradient.of_matrix(m)) if inverse else None
        for n, m in enumerate(plain)
    ]
    norms = torch.stack([q.norm for q in queries])  # (Q, L)
    exact: dict[str, list[np.ndarray]] = {"rapidin": [], "dot": [], "ekfac": []}
    parts: dict[str, list[dict[str, np.ndarray]]] = {label: [] for label in engines}
    different = list(dict.fromkeys(engines.values()))
    for batch in batches:
        count = len(batch.input_ids)
        sums = {name: torch.zeros(count, len(queries)) for name in exact}
        for engine in different:
            engine._maker.start(count)

        def consume(number: int, x: torch.Tensor, d: torch.Tensor, sums: Any = sums) -> None:
            gradient = LayerGradient.of_matrix(d.float().mT @ x.float())
            flat = gradient.dense().flatten(1)
            inner = flat @ plain[number].flatten(1).T
            sums["dot"] += inner
            sums["rapidin"] += inner / (flat.norm(dim=1)[:, None] * norms[:, number]).clamp_min(
                1e-30
            )
            if (direction := curved[number]) is not None:
                sums["ekfac"] += flat @ direction.flatten(1).T
            for engine in different:
                if engine.layout.spec.row == "sketch":  # the matrix is there already
                    engine._maker.add_matrix(number, gradient.dense(), None)
                else:
                    engine._maker.add(number, x, d, None)

        losses = passes.backward(batch, consume)
        for name, values in sums.items():
            exact[name].append(values.numpy())
        loss = torch.stack([part.sum() for part in losses])
        learnt = torch.tensor([len(p) for p in losses])
        made = {
            engine: GradientRows(*engine._maker.finish(), loss, learnt, []) for engine in different
        }
        for label, engine in engines.items():
            parts[label].append(kinds[label].encode(made[engine]))
    return (
        {name: np.concatenate(values) for name, values in exact.items()},
        {
            label: {key: np.concatenate([part[key] for part in found]) for key in found[0]}
            for label, found in parts.items()
        },
    )


def scanned(
    engine: GradientEngine,
    kind: RowKind,
    stored: Any,
    queries: list[Any],
    inverse: Ekfac | None,
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, Q) and sizes (N,) of cached rows."""
    score = SCORES[name]
    directions = []
    for query in queries:
        layers = query.layers
        if inverse and score.curvature:
            layers = [inverse.direction(n, layer) for n, layer in enumerate(query.layers)]
        directions.append(engine.probe(layers, score.divisors(query.norm)))
    norm = torch.from_numpy(stored["norm"])
    found = kind.products(torch.stack(directions))(stored, score.row_weights(norm))
    return found.numpy(), score.row_sizes(norm).numpy()


def judge(found: np.ndarray, sizes: np.ndarray, exact: np.ndarray) -> str:
    """Rank correlation; recall of the exact top in the shortlist; queries with the same top."""
    recalls, same, grown, lengths = [], 0, 0, []
    for column, truth in zip(found.T, exact.T, strict=True):
        best = extremes(truth[:, None], TOP, 0)
        slots = extremes(column[:, None], SHORTLIST, 0)
        recalls.append(np.isin(best, slots).mean())
        same += recalls[-1] == 1
        scanned = Ranked(column, sizes, slots, column[slots, None])
        for _ in range(GROWTH - 1):
            more = doubtful(scanned, slots, truth[slots], TOP)[: 2 * SHORTLIST]
            slots = np.concatenate([slots, more])
        grown += np.isin(best, slots).all()
        lengths.append(len(slots))
    count = exact.shape[1]
    return (
        f"rho {spearman(found, exact).mean():.3f}  recall {np.mean(recalls):.3f}  "
        f"same top {TOP}: {same}/{count}, grown to {np.mean(lengths):.0f}: {grown}/{count}"
    )


def recalls(found: np.ndarray, exact: np.ndarray) -> str:
    """Rank correlation; recall of the exact top among the row's own 20, 40 and 80."""
    shares = []
    for length in (TOP, 2 * TOP, SHORTLIST):
        each = [
            np.isin(extremes(t[:, None], TOP, 0), extremes(c[:, None], length, 0)).mean()
            for c, t in zip(found.T, exact.T, strict=True)
        ]
        shares.append(f"{np.mean(each):.3f}")
    return f"rho {spearman(found, exact).mean():.3f}  recall {' '.join(shares)}"


if __name__ == "__main__":
    main()
