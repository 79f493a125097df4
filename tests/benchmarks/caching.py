"""Caching against a plain training step: same model, same batches, same dtype, one run.

    python tests/benchmarks/caching.py [--model DIR] [--rounds 5] [--json FILE]

A training step is forward and backward with weight gradients, without the optimizer. The
two are timed in turn, batch by batch, and the ratio is taken pair by pair, so that a
machine whose speed drifts does not tilt it. Absolute seconds are shown for scale only. Also
printed is what it costs to capture all that was trained, over the linear layers alone, and what
factor rows cost over sketch rows.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example, padded, plan_batches
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.loading import quiet_loading
from rapidin_cli.setup.demo.training import build_demo
from rapidin_cli.work.devices import compute_dtype

FACTORS = GradientSpec(row="factors", rank=4, precision="int4")


def batches(model: Path, data: Path, tokens: int, count: int) -> list[Batch]:
    """The longest, a middle and other batches of the data, as `rin cache` would cut them."""
    from transformers import AutoTokenizer

    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(model)
    settings = DataSettings(files=(data.name,), template="chat", max_tokens=512)
    dataset = load_dataset(data.parent, settings, Encoder(tokenizer, settings))
    plan: list[list[Example]] = plan_batches(dataset.examples, [], tokens)
    step = max(1, len(plan) // count)
    chosen = plan[step // 2 :: step][:count]
    return [Batch(*map(torch.from_numpy, padded(batch))) for batch in chosen]


def load(path: Path, kind: str) -> Any:
    torch.manual_seed(0)
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if kind == "lora":
            config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
            model = get_peft_model(model, config)
    return model.eval()  # no dropout in either, so that both do the same work


def compare(path: Path, kind: str, work: list[Batch], dtype: str, rounds: int) -> dict[str, Any]:
    trained = load(path, kind)
    engine, sketch = maker(path, kind, GradientSpec(), dtype)
    factors = maker(path, kind, FACTORS, dtype)[1]
    linear = maker(path, kind, GradientSpec(capture="linear"), dtype)[1]

    def train(batch: Batch) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = trained(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
        loss.backward()
        trained.zero_grad(set_to_none=True)

    for once in (train, sketch, factors, linear):
        once(work[0])
    ratios, over, more, seconds = [], [], [], {"train": 0.0, "cache": 0.0}
    for number in range(rounds):
        batch = work[number % len(work)]
        a, b, c = timed(train, batch), timed(sketch, batch), timed(factors, batch)
        ratios.append(b / a)
        over.append(c / b)
        more.append(b / timed(linear, batch))
        seconds["train"] += a
        seconds["cache"] += b
    return {
        "kind": kind,
        "layers": len(engine.layout.layers),
        "parameters": engine.layout.parameters,
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "all": round(statistics.median(more), 3),
        "factors": round(statistics.median(over), 3),
        "factors_lowest": round(min(over), 3),
        "factors_highest": round(max(over), 3),
        "train_seconds": round(seconds["train"], 2),
        "cache_seconds": round(seconds["cache"], 2),
    }


def maker(
    path: Path, kind: str, spec: GradientSpec, dtype: str
) -> tuple[GradientEngine, Callable[[Batch], None]]:
    """An engine, and what makes the rows of a batch with it."""
    engine = GradientEngine(load(path, kind), spec, torch.device("cpu"), dtype)  # type: ignore[arg-type]
    rows = row_kind(engine.layout)

    def cache(batch: Batch) -> None:
        rows.encode(engine(batch))

    return engine, cache


def timed(work: Callable[[Batch], None], batch: Batch) -> float:
    start = time.perf_counter()
    work(batch)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a chat model's folder, such as SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="its rows (Alpaca JSON); needed with --model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = compute_dtype("auto", "cpu")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        facts = build_demo(Path(folder), lambda _: None)
        torch.set_num_threads(options.threads)
        cases = [("demo model", facts.base, facts.data, 20)]
        if options.model:
            cases.append((options.model.name, options.model, options.data, 1))
        for name, model, data, more in cases:
            work = batches(model, data, 2048, 5)
            for kind in ("lora", "full"):
                result = compare(model, kind, work, dtype, options.rounds * more)
                results.append({"model": name, **result})
                print(
                    f"{name:12} {kind:5} caching / training step = {result['ratio']:.2f} "
                    f"({result['lowest']:.2f} to {result['highest']:.2f}; "
                    f"{result['layers']} layers, {result['parameters']:,} parameters); "
                    f"all that was trained / linear layers alone = {result['all']:.2f}; "
                    f"factor rows / sketch rows = {result['factors']:.2f} "
                    f"({result['factors_lowest']:.2f} to {result['factors_highest']:.2f})",
                    flush=True,
                )
    machine = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "dtype": dtype,
    }
    print(json.dumps(machine))
    if options.json:
        options.json.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
