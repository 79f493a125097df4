"""`make gpu-check` itself: it runs to its end here, and says what became of every step."""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu import wheels
from tests.gpu.__main__ import Run
from tests.gpu.record import ROOT, SCHEMA, Record
from tests.gpu.steps import STEPS, Step


def test_all_steps_pass_on_a_cpu(tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--device=cpu", "--size=tiny", f"--out={out}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["schema"] == SCHEMA
    assert found["machine"]["torch"]
    assert [step["name"] for step in found["steps"]] == [step.name for step in STEPS]
    for step in found["steps"]:
        expected = "not here" if step["name"] == "two devices" else "passed"
        assert step["status"] == expected, step
        assert step["figures"] or expected == "not here", step
        assert step["name"] in done.stdout
    bounded = [f for step in found["steps"] for f in step["figures"].values() if type(f) is dict]
    assert len(bounded) > 150
    assert all(each["found"] <= each["at_most"] for each in bounded)
    ratios = next(s["figures"] for s in found["steps"] if s["name"].endswith("step, LoRA"))
    assert ratios["256 tokens: sketch over training"] > 0


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """Runs steps of a module that is made here; returns what was recorded."""
    (tmp_path / "spoilt.py").write_text(
        "import os, time\n"
        "def fine(lab): lab.near('one', 1.0, 2.0)\n"
        "def wrong(lab): lab.near('one', float('nan'), 2.0); lab.near('two', 1.0, 2.0)\n"
        "def raises(lab): lab.note('before', 1); raise ValueError('no good')\n"
        "def dies(lab): os.kill(os.getpid(), 9)\n"
        "def hangs(lab): time.sleep(100)\n"
        "def breaks(lab): lab.settle = lambda: False\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*names: str, minutes: float = 2.0, seconds: float = 20.0) -> dict[str, dict]:
        steps = [
            Step(f"{number} {name}", "check", f"spoilt:{name}", seconds)
            for number, name in enumerate(names)
        ]
        out = tmp_path / "found.json"
        options = argparse.Namespace(device="cpu", size="tiny", minutes=minutes)
        record = Record(out, [(step.name, step.kind) for step in steps])
        Run(steps, options, record).all(str(tmp_path))
        record.save()
        assert record.table()
        return {step["name"]: step for step in json.loads(out.read_text())["steps"]}

    return run


def test_what_goes_wrong_is_named_and_costs_no_other_step(spoilt):
    found = spoilt("fine", "wrong", "raises", "dies", "breaks", "fine")
    states = [step["status"] for step in found.values()]
    assert states == ["passed", "failed", "failed", "died", "passed", "passed"]
    assert found["1 wrong"]["error"] == "one: nan is more than 2"
    assert found["1 wrong"]["figures"]["two"] == {"found": 1.0, "at_most": 2.0}
    assert found["2 raises"]["error"].startswith("ValueError: no good (spoilt.py:")
    assert found["2 raises"]["figures"] == {"before": 1}
    assert found["3 dies"]["error"] == "signal 9"


def test_a_step_that_hangs_is_ended_and_so_is_the_run(spoilt):
    found = spoilt("hangs", "fine", seconds=1.0)
    assert [step["status"] for step in found.values()] == ["too slow", "passed"]
    found = spoilt("hangs", "fine", minutes=0.1)
    assert [step["status"] for step in found.values()] == ["not reached", "not reached"]


def test_wheels_are_all_that_is_needed_but_torch_and_what_only_torch_needs():
    needs = {
        "rin-like": ["torch>=2.6", "Typer>=0.26", "s3fs"],
        "torch": ["nvidia-cublas", "sympy", "jinja2"],
        "typer": ["rich>=10; python_version > '3.7'", "sphinx; extra == 'docs'", "jinja2"],
    }
    names = ["typer", "rich", "jinja2", "torch", "sympy", "nvidia-cublas", "sphinx", "s3fs"]
    report = {
        "install": [
            {"metadata": {"name": name, "version": "1", "requires_dist": needs.get(name, [])}}
            for name in names
        ]
    }
    assert wheels.needed(report, needs["rin-like"]) == ["jinja2==1", "rich==1", "typer==1"]


def test_wheels_of_another_python_are_refused():
    ours = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert not wheels.misfit(Path("a-1-py3-none-any.whl"))
    assert "not for Python" in wheels.misfit(Path("a-1-cp34-cp34-manylinux_2_17_x86_64.whl"))
    assert "not for" in wheels.misfit(Path(f"a-1-{ours}-{ours}-win_arm.whl"))


def test_wheels_are_unpacked_with_the_version_of_rin(tmp_path):
    (tmp_path / "wheels").mkdir()
    for name in ("thing", "numpy"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-1-py3-none-any.whl", "w") as made:
            made.writestr(f"{name}/__init__.py", "")
    site = tmp_path / "site"
    wheels.unpack(tmp_path / "wheels", site)
    assert (site / "thing" / "__init__.py").exists()
    assert not (site / "numpy").exists(), "the machine's own"
    (about,) = site.glob("rapidin-*.dist-info/METADATA")
    assert f"Version: {wheels.project()['version']}" in about.read_text()
