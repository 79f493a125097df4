"""Caching by rin and by its peers: same model, same rows, one run, CPU, float32, one thread.

    python tests/benchmarks/peers.py [--env FOLDER] [--only rin bergson] [--json FILE]
    python tests/benchmarks/peers.py --model DIR --data alpaca.json [--adapter DIR]

The peers' own environment is made in FOLDER/peers-env, with pip, on the first run. Everyone runs
in a process of its own, on the demo's small Llama (its LoRA, then all linear layers' weights)
and, with --model, on a LoRA of another model. Everyone gets the same batches (2,048 padded
tokens) and covers the same linear layers, and is timed in turn with plain training steps of the
same batches (forward and backward with weight gradients, no optimizer), batch by batch; `ratio`
is caching over training, the median of the rounds. What is written is written to disk.

rho and recall compare the inner products of cached rows with those of whole gradients (RapidIn:
of gradients divided by each parameter's norm, as its rows are): rank correlation over all rows,
and the share of the exact top 20 among the contender's own 80 (a tenth and four tenths of the
rows where there are fewer than 200), both as means over queries that are not among the rows. A
dash where there is none; the JSON says why.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example, plan_batches
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.evaluation.metrics import spearman
from rapidin_cli.models.loading import quiet_loading
from rapidin_cli.setup.demo.training import BASE, DATA_FILE, build_demo
from tests.benchmarks.peers_environment import INSTALL, make_environment, process_environment

TOKENS = 2048
SKETCH_BYTES = 65_536  # of rin's default rows before compression
FEWEST = 50
COMMON = ("torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Contender:
    """One line of the table: who, what of it, and at which dimension (None: the default)."""

    name: str
    kind: str
    packages: tuple[str, ...] = ()
    dimension: int = 16
    limited: bool = False

    @property
    def peer(self) -> bool:
        """Whether it needs the peers' environment."""
        return self.kind in INSTALL


CONTENDERS = [
    Contender("rin, sketch int8", "sketch"),
    Contender("rin, sketch sign", "sign"),
    Contender("rin, sketch 8,192 int8", "small"),
    Contender("rin, factors 4 int4", "factors"),
    Contender("bergson", "bergson", ("bergson",)),
    Contender("bergson, 64 KiB a row", "bergson", ("bergson",), dimension=0),
    Contender("dattri-llm", "dattri-llm", ("dattri-llm", "dattri")),
    Contender("LogIX", "LogIX", ("logix-ai",)),
    Contender("TRAK", "TRAK", ("traker",)),
    Contender("RapidIn, released", "RapidIn", limited=True),
]


@dataclass(frozen=True)
class Case:
    """A model, with or without an adapter, and rows for it."""

    name: str
    model: Path
    adapter: Path | None
    rows: list[list[Example]]
    queries: list[list[Example]]

    @property
    def layers(self) -> int:
        """How many linear layers are covered."""
        config = json.loads((self.model / "config.json").read_text())
        return int(config["num_hidden_layers"]) * (14 if self.adapter else 7)


def read_rows(model: Path, data: Path, rows: int, queries: int) -> list[list[list[Example]]]:
    """Rows and queries, spread over the data, each in batches."""
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(model)
    settings = DataSettings(files=(data.name,), template="chat", max_tokens=256)
    unique = {
        e.digest: e
        for e in load_dataset(data.parent, settings, Encoder(tokenizer, settings)).examples
    }
    examples = [e for e in unique.values() if e.learnt]
    asked = examples[:: max(1, len(examples) // queries)][:queries]
    chosen = {e.digest for e in asked}
    others = [e for e in examples if e.digest not in chosen]
    return [plan_batches(part, (), TOKENS) for part in (evenly(others, rows), asked)]


def evenly(examples: list[Example], count: int) -> list[Example]:
    picks = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int)
    return [examples[n] for n in picks]


def as_json(batches: list[list[Example]]) -> dict[str, Any]:
    rows = [example for batch in batches for example in batch]
    return {
        "ids": [e.input_ids.tolist() for e in rows],
        "labels": [e.labels.tolist() for e in rows],
        "sizes": [len(batch) for batch in batches],
    }


def with_base(adapter: Path, base: Path, folder: Path) -> Path:
    """A copy of an adapter that names its base model by its whole path."""
    folder.mkdir(parents=True)
    for file in adapter.glob("adapter_*"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "adapter_config.json"
    named = {**json.loads(config.read_text()), "base_model_name_or_path": str(base.absolute())}
    config.write_text(json.dumps(named))
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    """A LoRA (r=8, all linear layers) of which both factors are drawn."""
    torch.manual_seed(0)
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    return folder


def run(
    case: Case, contender: Contender, options: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """Run a contender in its process; what came out, or why nothing did."""
    python, failed = options.python if contender.peer else (Path(sys.executable), {})
    if reason := failed.get(contender.kind):
        return {"failed": reason}
    few = contender.limited or (contender.kind == "TRAK" and case.layers > 100)
    examples = [example for batch in case.rows for example in batch]
    timed = plan_batches(evenly(examples, options.slow_rows), (), TOKENS) if few else case.rows
    fitting = max(1, round((SKETCH_BYTES / 4 / case.layers) ** 0.5))
    work.mkdir()
    job = {
        "contender": contender.name,
        "kind": contender.kind,
        "module": f"tests.benchmarks.peers_{'theirs' if contender.peer else 'ours'}",
        "model": str(case.model.absolute()),
        "adapter": str(case.adapter) if case.adapter else None,
        "rows": as_json(case.rows),
        "queries": as_json(case.queries),
        "timed": as_json(timed),
        "rounds": options.rounds,
        "threads": options.threads,
        "tokens": TOKENS,
        "dimension": contender.dimension or fitting,
        "packages": [*COMMON, *contender.packages],
        "folder": str(work),
        "spawned": time.time(),
    }
    (work / "job.json").write_text(json.dumps(job))
    try:
        done = subprocess.run(
            [str(python), "-m", "tests.benchmarks.peers_worker", str(work / "job.json")],
            capture_output=True,
            text=True,
            cwd=work,
            env=process_environment(options.threads, work),
            timeout=options.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {options.timeout} s"}
    if options.verbose or done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    if done.returncode < 0:
        return {"failed": f"killed by signal {-done.returncode}"}
    if done.returncode:
        return {"failed": (done.stderr.strip() or "no message").splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def judge(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> dict[str, float]:
    """Rank correlation and recall, means over queries; (N, Q) both."""
    top = 20 if len(exact) >= 200 else max(1, len(exact) // 10)
    recalls = []
    for column, truth in zip(found.T, exact.T, strict=True):
        best, own = np.argsort(-truth)[:top], np.argsort(-column)[: 4 * top]
        recalls.append(np.isin(best, own).mean())
    rho = float(spearman(found, exact).mean())
    return {"rho": round(rho, 3), "recall": round(float(np.mean(recalls)), 3), "top": top}


def compare(case: Case, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run everyone on one case; print the table's lines as they come."""
    rows = sum(map(len, case.rows))
    print(f"\n{case.name}: {rows} rows, {len(case.rows)} batches, {case.layers} layers", flush=True)
    print(f"{'':22} rows/s  ratio  start  bytes/row  peak MB    rho  recall", flush=True)
    reference = run(case, Contender("exact", "exact"), options, folder / "exact")
    if "failed" in reference:
        raise RuntimeError(f"exact gradients: {reference['failed']}")
    exact = np.load(folder / "exact/exact.npz")
    results = []
    for number, contender in enumerate(CONTENDERS):
        if options.only and not any(contender.name.startswith(name) for name in options.only):
            continue
        work = folder / str(number)
        result = run(case, contender, options, work)
        scores = work / f"{contender.name}.npy"
        if scores.exists():
            truth = exact["unit" if contender.kind == "RapidIn" else "dot"]
            found = np.load(scores)
            if found.shape != truth.shape:
                result["no_fidelity"] = f"only {len(found)} rows were cached"
            elif len(truth) < FEWEST:
                result["no_fidelity"] = f"{len(truth)} rows are too few"
            else:
                result |= judge(found, truth)
        results.append({"case": case.name, "contender": contender.name, **result})
        print(line(contender.name, result), flush=True)
    return results


def line(name: str, result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"{name:22} - ({result['failed']})"
    fidelity = [f"{result[key]:.3f}" if key in result else "-" for key in ("rho", "recall")]
    return (
        f"{name:22} {result['examples_per_second']:6.4g} {result['ratio']:6.2f} "
        f"{result['startup_seconds']:5.1f}s {result['row_bytes']:10,} "
        f"{result['peak_rss'] / 1e6:8,.0f}  {fidelity[0]:>5}   {fidelity[1]:>5}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a chat model's folder, such as SmolLM2-135M")
    parser.add_argument("--adapter", type=Path, help="a LoRA of it; without, one is drawn")
    parser.add_argument("--data", type=Path, help="its rows (Alpaca JSON); needed with --model")
    parser.add_argument("--demo", type=Path, help="a folder that `rin demo` made; else it is made")
    parser.add_argument("--cases", nargs="+", default=["lora", "full", "model"])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model-rows", type=int, default=24, help="rows with --model")
    parser.add_argument("--slow-rows", type=int, default=6, help="rows that RapidIn is timed on")
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=3600, help="seconds a contender may take")
    parser.add_argument("--env", type=Path, default=Path(tempfile.gettempdir()) / "rin-peers")
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.python = make_environment(options.env)
    results = []
    with tempfile.TemporaryDirectory(prefix="rin-peers-") as name:
        folder = Path(name)
        for case in cases(options, folder):
            work = folder / case.name.replace(" ", "-")
            work.mkdir()
            results += compare(case, options, work)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "threads": options.threads,
        "dtype": "float32",
        "versions": {name: version(name) for name in COMMON},
    }
    peers = {k: v for result in results for k, v in result.get("versions", {}).items()}
    print(json.dumps({**machine, "versions": {**peers, **machine["versions"]}}))
    if options.json:
        options.json.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


def cases(options: argparse.Namespace, folder: Path) -> list[Case]:
    demo = options.demo or folder / "demo"
    if not options.demo:
        build_demo(demo, lambda _: None)
        torch.set_num_threads(options.threads)
    base = demo / BASE
    last = max((demo / "model").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    parts = read_rows(base, demo / DATA_FILE, options.rows, options.queries)
    found = [
        Case("demo LoRA", base, with_base(last, base, folder / "demo-adapter"), *parts),
        Case("demo full", base, None, *parts),
    ]
    if options.model:
        adapter = options.adapter or random_adapter(options.model, folder / "random")
        adapter = with_base(adapter, options.model, folder / "adapter")
        parts = read_rows(options.model, options.data, options.model_rows, options.queries)
        found.append(Case(f"{options.model.name} LoRA", options.model, adapter, *parts))
    names = ("lora", "full", "model")
    return [case for name, case in zip(names, found, strict=False) if name in options.cases]


if __name__ == "__main__":
    main()
