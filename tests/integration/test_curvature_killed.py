"""`rin curvature` killed in each of its stages: it goes on, and what it collects is the same."""

import os
import subprocess
import sys
import time

import pytest
import torch

from rapidin_cli import Project
from tests.support import tiny
from tests.support.forked import rin

# The command itself, slower, whose sums are kept after each step; it counts what it does.
SLOWLY = """
import sys, time
from pathlib import Path
from rapidin_cli.gradients import curvature, partial_curvature, passes

log, pause = open("steps.log", "a"), float(sys.argv.pop(1))

def slowly(what, plain):
    def call(*arguments, **named):
        log.write(what)
        log.flush()
        time.sleep(pause)
        return plain(*arguments, **named)
    return call

passes.Passes.backward = slowly("b", passes.Passes.backward)
curvature.eigenvectors = slowly("e", curvature.eigenvectors)
save = partial_curvature.PartialCurvature.save
partial_curvature.PartialCurvature.save = lambda self, sums, *, phase: save(self, sums, phase=True)
import rapidin_cli.commands.main as main
main.main()
"""


def run(folder, pause, wait_for=None):
    """Run it; kill it once it has written so much. Return what it wrote."""
    log = folder / "steps.log"
    log.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(pause), "curvature"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while wait_for is not None and process.poll() is None:
        if log.exists() and log.read_text().endswith(wait_for):
            process.kill()
        time.sleep(0.005)
    _, talk = process.communicate(timeout=120)
    assert process.returncode == (0 if wait_for is None else -9), talk
    return log.read_text(), talk


@pytest.mark.parametrize("labels", ["data", "model"])
def test_killed_in_every_stage_it_goes_on_to_the_same(tmp_path, labels):
    folder, calm = (
        tiny.project(tmp_path / name, 30, adapter=False, batch_tokens=128)
        for name in ("killed", "calm")
    )
    for place in (folder, calm):
        with (place / "rin.toml").open("a") as file:
            file.write(f'\n[curvature]\nlabels = "{labels}"\n')
    alone, _ = run(calm, 0)
    batches, layers = alone.count("b") // 2, alone.count("e")
    assert (batches, layers) == (8, 16)
    kept = folder / ".rin/curvature"
    run(folder, 0.1, "b" * 5)
    assert [path.name for path in kept.glob("*/[!.]*")] == ["pairs.sums"]
    second, _ = run(folder, 0.1, "e" * 4)
    assert second.startswith("b" * (batches - 4) + "e"), "four of five batches were safe"
    third, _ = run(folder, 0.1, "e" + "b" * 4)
    assert third == "e" * (layers - 3) + "b" * 4
    rest, talk = run(folder, 0)
    assert rest == "b" * (batches - 3), "three of four batches were safe"
    assert "collected on 30 examples" in talk
    assert not list(kept.iterdir())
    found, expected = (next(Project.open(place).curvature())[1] for place in (folder, calm))
    assert (found.data, found.examples) == (expected.data, expected.examples)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        for part in ("inputs", "outputs", "values"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert "already collected" in rin(folder, "curvature").stderr


def test_sums_of_other_data_and_damaged_ones_are_not_taken(tmp_path):
    folder = tiny.project(tmp_path / "project", 30, adapter=False, batch_tokens=128)
    run(folder, 0.1, "b" * 5)
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(29))
    again, _ = run(folder, 0.1, "b" * 5)
    assert again == "b" * 5, "begun anew"
    [pairs] = (folder / ".rin/curvature").glob("*/pairs.sums")
    pairs.write_bytes(pairs.read_bytes()[:-100])
    (pairs.parent / ".pairs.sums.0123.tmp").write_bytes(b"x")
    steps, talk = run(folder, 0)
    assert steps.count("b") == 2 * 7, talk
    assert "collected on 29 examples" in talk
    assert not list((folder / ".rin/curvature").iterdir())
