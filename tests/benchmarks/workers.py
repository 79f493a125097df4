"""Caching by one and by two CPU workers, a thread each: how much faster are two?

    python tests/benchmarks/workers.py [--model DIR --data FILE] [--rounds 5] [--json FILE]

Batches (all weights of the demo's base model, or of another) go through the processes that
`rin cache --workers` would start, without the store. Every worker has loaded its model and
computed some batches before. Both are timed in turn, and the ratio is taken pair by pair. Two
cores may share one core's arithmetic: what the machine gives two processes that only multiply
matrices, against one, is measured in every round too.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
# Also of processes that are started.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.setup.demo.training import build_demo
from rapidin_cli.work.devices import compute_dtype
from rapidin_cli.work.processes import ProcessPool
from rapidin_cli.work.worker import Job
from tests.benchmarks.caching import batches

SIDE, PRODUCTS = 1024, 30


def multiply(_: int) -> None:
    """Matrix products, by one thread."""
    torch.set_num_threads(1)
    left = torch.randn(SIDE, SIDE)
    for _ in range(PRODUCTS):
        left @ left


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: Path, data: Path, count: int, rounds: int) -> dict[str, Any]:
    job = Job(Checkpoint("model", model, None), GradientSpec(), "cpu", 1, "auto")
    work = [(b.input_ids.numpy(), b.labels.numpy()) for b in batches(model, data, 512, count)]
    one, two = ProcessPool([job]), ProcessPool([job, job])
    ratios, machine = [], []
    with multiprocessing.get_context("spawn").Pool(2) as bare:
        for pool in (one, two):  # until every worker is there
            list(pool.run(work))
        bare.map(multiply, range(4), chunksize=1)
        for _ in range(rounds):
            alone = timed(lambda: list(one.run(work)))
            ratios.append(alone / timed(lambda: list(two.run(work))))
            bare_alone = timed(lambda: bare.apply(multiply, (0,)))
            both = timed(lambda: bare.map(multiply, range(2), chunksize=1))
            machine.append(2 * bare_alone / both)
    for pool in (one, two):
        pool.close()
    return {
        "batches": len(work),
        "rows": sum(len(ids) for ids, _ in work),
        "two_workers": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "two_processes_of_matrix_products": round(statistics.median(machine), 2),
        "dtype": compute_dtype("auto", "cpu"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a chat model's folder, such as SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="its rows (Alpaca JSON); needed with --model")
    parser.add_argument("--batches", type=int, default=24, help="at most, of 512 padded tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, data = options.model, options.data
        if not model:
            facts = build_demo(Path(folder), lambda _: None)
            model, data = facts.base, facts.data
        found = measure(model, data, options.batches, options.rounds)
    print(
        f"two workers / one worker = {found['two_workers']:.2f} ({found['lowest']:.2f} to "
        f"{found['highest']:.2f}) times the rows per second; two processes / one process of "
        f"matrix products alone = {found['two_processes_of_matrix_products']:.2f}"
    )
    found |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
