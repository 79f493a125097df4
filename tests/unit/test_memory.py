"""Batches that fit: what a token takes is measured, and larger batches are cut."""

import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from rapidin_cli.gradients import output_layer
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.memory import batch_bytes, batch_limit, kept_bytes
from rapidin_cli.gradients.passes import Batch, Passes
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.work.worker import Job, Worker
from tests.support import tiny

CPU = torch.device("cpu")


def passes_of(model) -> Passes:
    return Passes(model, "", CPU, "float32")


def test_a_token_takes_what_the_passes_keep_of_it():
    """Per layer at least the inputs of its seven linear layers and what they come from."""
    hidden, inner, layers = 64, 160, 3
    model = tiny.llama(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    passes = passes_of(model)
    takes = batch_bytes(passes)
    found = takes.token
    kept = layers * 4 * (4 * hidden + 4 * inner)  # norms' outputs, values; gate, up, products
    assert kept < found < 8 * kept
    limit = batch_limit(CPU, takes)
    assert limit % 16 == 0
    assert takes.of(limit) <= 768 * 2**20 < takes.of(limit + 16)
    deeper = tiny.llama(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2 * layers)
    assert batch_bytes(passes_of(deeper)).token == pytest.approx(2 * found, rel=0.15)


def test_weights_and_labels_do_not_count():
    """Nor do the copies of weights that autocast makes."""
    for compute in ("float32", "bfloat16"):
        few, many = (
            batch_bytes(Passes(tiny.llama(vocabulary=size), "", CPU, compute))
            for size in (400, 4000)
        )
        assert few.token == many.token
    kept = [kept_bytes(Passes(tiny.llama(), "", CPU, d), 64) for d in ("bfloat16", "float32")]
    assert kept[0] < kept[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_was_measured_is_freed():
    """A graph that holds its own outputs never is: 270 MB of SmolLM2-135M in bfloat16."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    passes = Passes(tiny.llama(), "", CPU, "bfloat16")
    before = alive()
    batch_bytes(passes)
    assert alive() == before


def test_a_row_that_is_longer_than_fits_is_computed_twice_and_the_same(tmp_path):
    worker = Worker(job_of(tmp_path))
    ids = np.random.default_rng(0).integers(1, 300, (1, 40))
    kept = worker.rows((ids, ids))
    assert worker.engine.passes.keeps == worker.limit > 40
    worker.engine.passes.keeps = 39
    again = worker.rows((ids, ids))
    for name, values in kept.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def job_of(path) -> Job:
    folder = tiny.project(path / "project", 2)
    return Job(
        Checkpoint("tuned", folder / "adapter", folder / "base"),
        GradientSpec(dimensions=2048, precision="float16"),
        "cpu",
        1,
        "float32",
    )


def test_a_batch_over_the_limit_is_cut_and_its_rows_are_the_same(tmp_path):
    worker = Worker(job_of(tmp_path))
    assert worker.limit > 1000
    ids = np.random.default_rng(0).integers(1, 300, (10, 12))
    whole = worker.rows((ids, ids))
    sizes = []
    engine = worker.engine

    def watched(batch):
        sizes.append(tuple(batch.input_ids.shape))
        return engine(batch)

    worker.engine = watched  # type: ignore[assignment]
    worker.limit, worker.token_seconds = 50, 0.0
    cut = worker.rows((ids, ids))
    assert sizes == [(4, 12), (4, 12), (2, 12)]
    for name, values in whole.items():
        np.testing.assert_allclose(cut[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


EXHAUST = """
import json, resource, sys
from pathlib import Path
import numpy as np
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.work import worker as worker_module
from rapidin_cli.work.worker import Job, Worker

folder = Path(sys.argv[1])
checkpoint = Checkpoint("tuned", folder / "adapter", folder / "base")
spec = GradientSpec(dimensions=2048, precision="float16")
worker = Worker(Job(checkpoint, spec, "cpu", 1, "float32"))
worker.limit, worker_module.PART_SECONDS = 10**9, 1e9  # nothing is cut beforehand
ids = np.random.default_rng(0).integers(1, 300, (64, 256))
worker.rows((ids[:1], ids[:1]))
engine, sizes = worker.engine, []

def watched(batch):
    sizes.append(len(batch.input_ids))
    return engine(batch)

worker.engine = watched
# Room for some twenty rows more than what the process has now.
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = worker.takes.of(20 * ids.shape[1])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, before[1]))
scarce = worker.rows((ids, ids))
resource.setrlimit(resource.RLIMIT_AS, before)
tried = list(sizes)
later = worker.rows((ids, ids))
then = sizes[len(tried):]
worker.limit = 10**9
plenty = worker.rows((ids, ids))
same = all(np.allclose(scarce[n], plenty[n], rtol=1e-3, atol=1e-3) for n in plenty)
print(json.dumps({"tried": tried, "then": then, "same": same, "room": room}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_batch_for_which_there_is_no_memory_is_halved(tmp_path):
    folder = tiny.project(tmp_path / "project", 2)
    done = subprocess.run(
        [sys.executable, "-c", EXHAUST, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tried"][:2] == [64, 32], found
    left, following = [64], [*found["tried"][1:], 0]
    for size, then in zip(found["tried"], following, strict=True):
        assert size == left.pop(), found
        if then == size // 2 and (not left or left[-1] != then):  # it failed
            left += [then, then]
    assert not left, found
    smallest = min(found["tried"])
    assert found["then"] == [smallest] * (64 // smallest), "later batches are cut at once"
    assert found["same"]


def test_logits_come_in_parts_only_where_they_are_the_output_layers():
    assert passes_of(tiny.llama())._separate is not None
    assert passes_of(tiny.lora(tiny.gpt2()))._separate is not None
    assert passes_of(tiny.llama(tie_word_embeddings=False))._separate is not None
    assert passes_of(tiny.cohere())._separate is None


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_the_logits_make_no_difference(monkeypatch, weighted):
    ids = torch.randint(1, 300, (3, 14), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[2] = -100  # nothing to learn
    weights = torch.tensor([0.5, -2.0, 1.0]) if weighted else None
    found = []
    for numbers in (2**23, 400, 1600):  # all at once; one token, four tokens at a time
        monkeypatch.setitem(output_layer._LOGITS, "cpu", numbers)
        engine = GradientEngine(tiny.lora(tiny.llama()), GradientSpec(), CPU, "float32")
        gradients: dict[int, torch.Tensor] = {}

        def keep(number, x, d, gradients=gradients):
            gradients[number] = d.mT @ x

        losses = engine.passes.backward(Batch(ids, labels), keep, weights)
        assert [len(part) for part in losses] == [9, 9, 0]
        found.append((torch.cat(losses), [gradients[n] for n in sorted(gradients)]))
    for losses, gradients in found[1:]:
        torch.testing.assert_close(losses, found[0][0])
        for ours, theirs in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
