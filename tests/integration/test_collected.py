"""Scores through collected curvature and the optimizer's state, on the command line."""

import json
import multiprocessing
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch

from rapidin_cli import Project
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.influence.preconditioners import Ekfac
from rapidin_cli.work.worker import WorkerError
from rapidin_cli.workspace.lock import read_lock
from tests.support import tiny
from tests.support.asked import PROMPT, RESPONSE, SCHEMA, by_digest
from tests.support.forked import rin


def test_curvature_is_collected_once_and_shared(prepared, tmp_path):
    again = rin(prepared, "curvature")
    assert "already collected" in again.stderr
    assert "note:" not in again.stderr
    entry = read_lock(prepared)["tuned"]
    assert entry.curvature
    one = Path(shutil.copytree(prepared, tmp_path / "one"))
    assert rin(one, "remote", "add", "origin", tmp_path / "shared").returncode == 0
    assert rin(one, "status", "--exit-code").returncode == 1
    pushed = rin(one, "push")
    assert pushed.returncode == 0, pushed.stderr
    assert "tuned (curvature)" in pushed.stderr
    two = Path(shutil.copytree(one, tmp_path / "two", ignore=shutil.ignore_patterns(".rin")))
    assert rin(two, "pull").returncode == 0
    assert Project.open(two).opened().curvature_cache.snapshot() is not None
    ways = ["retrieve", "--prompt", PROMPT, "--response", RESPONSE, "--json", "--score", "ekfac"]
    here, there = (json.loads(rin(folder, *ways).stdout) for folder in (one, two))
    assert here["queries"] == there["queries"]
    anew = rin(two, "curvature", "--again")
    assert "collected on 24 examples" in anew.stderr
    assert rin(two, "verify").returncode == 0


@pytest.mark.parametrize("labels", ["data", "model"])
def test_two_workers_collect_the_same_curvature(prepared, tmp_path, labels):
    """Their bases may differ by signs; what they do to a gradient may not."""
    folder = Path(shutil.copytree(prepared, tmp_path / "two"))
    with (folder / "rin.toml").open("a") as file:
        file.write(f'\n[curvature]\nlabels = "{labels}"\n')
    project = Project.open(folder)
    alone, together = (
        next(project.curvature(devices="cpu", workers=count, again=True))[1] for count in (1, 2)
    )
    assert alone.data == together.data
    generator = torch.Generator().manual_seed(1)
    one, two = (Ekfac(c.layers, 0.1, torch.device("cpu")) for c in (alone, together))
    for number, layer in enumerate(alone.layers):
        gradient = torch.randn(1, *layer.values.shape, generator=generator)
        expected = one.change(number, LayerGradient.of_matrix(gradient))
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            two.change(number, LayerGradient.of_matrix(gradient)),
            expected,
            rtol=0,
            atol=2e-3 * scale,
        )


def test_a_worker_killed_over_curvature_is_named_and_nothing_is_stored(prepared, tmp_path):
    folder = Path(shutil.copytree(prepared, tmp_path / "killed"))
    project = Project.open(folder)
    before = project.opened().curvature_cache.snapshot().commit.number

    def kill(*_):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(WorkerError, match=r"killed by signal 9.*no curvature was stored"):
        list(project.curvature(devices="cpu", workers=2, again=True, progress=kill))
    assert project.opened().curvature_cache.snapshot().commit.number == before
    assert not multiprocessing.active_children()


def test_without_curvature_ekfac_names_the_command(cached_project):
    done = rin(
        cached_project, "retrieve", "--score", "ekfac", "--prompt", PROMPT, "--response", RESPONSE
    )
    assert done.returncode == 5
    assert "next:  rin curvature tuned" in done.stderr


def test_adam_scores_by_the_trainers_optimizer(prepared, tmp_path):
    ways = ["retrieve", "--score", "adam", "--prompt", PROMPT, "--response", RESPONSE, "--json"]
    lacking = rin(prepared, *ways)
    assert lacking.returncode == 4
    assert "has no optimizer.pt" in lacking.stderr
    folder = Path(shutil.copytree(prepared, tmp_path / "one"))
    trained = [p for p in tiny.lora(tiny.llama()).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    torch.manual_seed(3)
    for parameter in trained:
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    plain = json.loads(rin(folder, *ways[:2], "dot", *ways[3:]).stdout)
    shutil.rmtree(folder / ".rin")
    (folder / "rin.lock").unlink()
    Project.open(folder).cache()
    asked = [ways[0], *ways[3:-1]]  # by default, without curvature
    assert "retraining better: rin curvature\n" in rin(folder, *asked).stderr
    torch.save(optimizer.state_dict(), folder / "adapter" / "optimizer.pt")
    assert "retraining better: rin curvature, or --score adam\n" in rin(folder, *asked).stderr
    report = json.loads(rin(folder, *ways).stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["score"]["name"] == "adam"
    ours, dot = by_digest(report), by_digest(plain)
    scale = max(abs(example["score"]) for example in ours.values())
    for example in ours.values():
        assert example["sketched"] == pytest.approx(example["score"], abs=0.2 * scale)
    assert any(not 0.9 < ours[d]["score"] / dot[d]["score"] < 1.1 for d in ours.keys() & dot.keys())
