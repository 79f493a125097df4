"""One contender of `peers.py`, in a process of its own: `-m tests.benchmarks.peers_worker JOB`.

Runs in the peers' environment or in rin's, and needs torch, transformers, peft and numpy. It
caches all rows once, untimed but for its start-up, then again and again in turn with plain
training steps of the same batches, and prints one JSON line. Scores go beside the job.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

IGNORED = -100
Job = dict[str, Any]
Array = np.ndarray[Any, Any]


class Data:
    """Rows in the order of their batches: token ids and labels, padded on the right."""

    def __init__(self, part: dict[str, Any]) -> None:
        self.ids: list[list[int]] = part["ids"]
        self.labels: list[list[int]] = part["labels"]
        ends = np.cumsum(part["sizes"]).tolist()
        self.members = [
            list(range(end - n, end)) for n, end in zip(part["sizes"], ends, strict=True)
        ]
        self.batches = [
            (padded([self.ids[n] for n in m], 0), padded([self.labels[n] for n in m], IGNORED))
            for m in self.members
        ]

    def __len__(self) -> int:
        return len(self.ids)


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


class Turns:
    """The numbers of the batches, for a contender to go through.

    What it does from one number to the next is its time; what happens in between is not.
    """

    def __init__(self, count: int, between: Callable[[int], None] = lambda _: None) -> None:
        self.count, self.between = count, between
        self.seconds, self.first, self._since = 0.0, 0.0, 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.between(number)
            self.first = self.first or time.time()
            self._since = time.perf_counter()
            yield number
            self.seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()

    def stop(self) -> float:
        """Count what came after the last batch, too; return the seconds in all."""
        self.seconds += time.perf_counter() - self._since
        return self.seconds


class Contender(Protocol):
    """What is compared."""

    note: str

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        """Write the rows of the data into a new folder."""

    def scores(self, data: Data, folder: Path, queries: Data, other: Path) -> Array:
        """Score the rows that `folder` holds for each query: (N, Q)."""


def load(job: Job) -> Any:
    """The model of a job, in eval mode: nobody's dropout, so that all do the same work."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    return model.eval()


def linear_layers(model: Any) -> dict[str, Any]:
    """The trainable linear layers, the output layer left out: what all contenders cover."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        if module.weight.requires_grad
    }


def frozen_but_embedding(model: Any) -> Any:
    """For hooks that need no weight gradients: only activations get any."""
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    return model


def loss_of(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the shifted next-token cross-entropy, as every contender differentiates it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


class ProjectedRows:
    """Contenders whose score is the inner product of stored rows."""

    note = ""

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        raise NotImplementedError

    def rows(self, folder: Path) -> Array:
        """What is stored, (N, K)."""
        raise NotImplementedError

    def scores(self, data: Data, folder: Path, queries: Data, other: Path) -> Array:
        del data
        self.cache(queries, Turns(len(queries.batches)), other)
        ours, theirs = (np.asarray(self.rows(f), np.float32) for f in (folder, other))
        found: Array = ours @ theirs.T
        return found


def reference(job: Job) -> dict[str, Any]:
    """Write the inner products of whole gradients."""
    exact = import_module(job["module"]).make(job)
    dot, unit = exact.products(Data(job["rows"]), Data(job["queries"]))
    np.savez(Path(job["folder"]) / "exact.npz", dot=dot, unit=unit)
    return {}


def measure(job: Job) -> dict[str, Any]:
    """Run a contender; return what was measured."""
    work = Path(job["folder"])
    data, queries = Data(job["timed"]), Data(job["queries"])
    contender: Contender = import_module(job["module"]).make(job)
    folder = work / job["contender"]
    turns = Turns(len(data.batches))
    contender.cache(data, turns, folder)
    turns.stop()
    result = {
        "startup_seconds": round(turns.first - job["spawned"], 2),
        "peak_rss": peak_rss(),
        "row_bytes": round(
            sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / len(data)
        ),
        "rows": len(data),
        "no_fidelity": "",
    }
    try:
        found = contender.scores(data, folder, queries, work / f"{job['contender']}-queries")
        np.save(work / f"{job['contender']}.npy", found)
    except Exception as error:  # a peer's: the benchmark goes on without its fidelity
        traceback.print_exc()
        result["no_fidelity"] = f"{type(error).__name__}: {error}"
    trained = load(job)
    result |= interleaved(contender, trained, data, job["rounds"], folder)
    return {**result, "note": contender.note, "versions": versions(*job["packages"])}


def peak_rss() -> int:
    """Bytes. Where the kernel tells, those since exec: rusage also counts the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(found["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interleaved(
    contender: Contender, trained: Any, data: Data, rounds: int, folder: Path
) -> dict[str, Any]:
    """Time caching and training steps in turn, batch by batch."""
    spent = 0.0

    def train(number: int) -> None:
        nonlocal spent
        ids, labels = data.batches[number]
        start = time.perf_counter()
        trained(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        trained.zero_grad(set_to_none=True)
        spent += time.perf_counter() - start

    train(0)
    ratios, rates = [], []
    for number in range(rounds):
        spent = 0.0
        turns = Turns(len(data.batches), train)
        contender.cache(data, turns, Path(f"{folder}-{number}"))
        seconds = turns.stop()
        ratios.append(seconds / spent)
        rates.append(len(data) / seconds)
    return {
        "timed_rows": len(data),
        "examples_per_second": round(statistics.median(rates), 2),
        "training_examples_per_second": round(len(data) / spent, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(read["threads"])
    work = reference if read["kind"] == "exact" else measure
    print(json.dumps(work(read)), flush=True)
