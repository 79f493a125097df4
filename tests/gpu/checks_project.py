"""A whole small project on the device against the same on the CPU."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapidin_cli import Options, Project, Question
from rapidin_storage import Snapshot
from tests.gpu.lab import Lab, NotHereError
from tests.support import tiny

QUESTION = Question("q", "Where is the cat number 3?", "The cat number 3 walks in the garden.")


def a_project(lab: Lab) -> None:
    """Cache, collect curvature, ask for every score, hold the rows, let the model speak."""
    if lab.device.type not in ("cpu", "cuda"):
        raise NotHereError(f"Project takes no {lab.device} yet")
    held = "cpu" if lab.device.type == "cpu" else "gpu"
    ours, theirs = (
        _cached(lab.folder / name, device)
        for name, device in (("there", str(lab.device)), ("here", "cpu"))
    )
    _same_rows(lab, "cached rows", ours, theirs)
    for score, at_most in {"rapidin": 1e-3, "dot": 1e-3, "gram": 2e-2, "ekfac": 2e-2}.items():
        options = Options(score=score, top=5, token_top=2)
        sides = [
            project.retrieve([QUESTION], options, device=device)
            for project, device in ((ours, str(lab.device)), (theirs, "cpu"))
        ]
        found, expected = (_scores(report) for report in sides)
        scale = max(map(abs, expected.values()))
        both = found.keys() & expected.keys()
        away = max(abs(found[each] - expected[each]) for each in both) / scale
        lab.near(f"{score}: scores", away, at_most)
        lab.near(f"{score}: others among the best", len(expected.keys() - both), 2)
        exact = sides[0]["queries"][0]["exact"]
        lab.true(f"{score}: forward mode", bool(exact["forward_mode"]))
    options = Options(score="rapidin", exact=0, tokens=False)
    asked = {hold: ours.session(device=str(lab.device), hold=hold) for hold in ("disk", held)}
    read = _scores(asked["disk"].retrieve([QUESTION], options))
    for time in ("first", "second"):
        kept = _scores(asked[held].retrieve([QUESTION], options))
        away = max(abs(kept[each] - read[each]) for each in read) / max(map(abs, read.values()))
        lab.near(f"held on the {held}, {time} time", away, 1e-5)
    said = ours.retrieve(
        [Question("g", "Where is the owl?")],
        Options(score="dot", top=2, token_top=1, max_new_tokens=8),
        device=str(lab.device),
    )
    lab.true("the model speaks", len(said["queries"][0]["tokens"]) > 0)


def two_devices(lab: Lab) -> None:
    """Rows and curvature of two workers on two devices."""
    if lab.device.type != "cuda" or torch.cuda.device_count() < 2:
        raise NotHereError("there is one device")
    ours = _cached(lab.folder / "both", "cuda:0,cuda:1")
    theirs = _cached(lab.folder / "alone", "cpu")
    _same_rows(lab, "cached rows", ours, theirs)


def _cached(folder: Path, devices: str) -> Project:
    """A fresh project, cached and with its curvature."""
    shutil.rmtree(folder, ignore_errors=True)
    project = Project.open(tiny.project(folder))
    project.cache(devices=devices)
    for _ in project.curvature(devices=devices):
        pass
    return project


def _same_rows(lab: Lab, name: str, ours: Project, theirs: Project) -> None:
    rows = [_rows(project.opened().snapshot()) for project in (ours, theirs)]
    lab.true(f"{name}: the same examples", rows[0].keys() == rows[1].keys())
    norms, sketches = [], []
    for digest, row in rows[0].items():
        other = rows[1][digest]
        size = np.linalg.norm(other["norm"])
        norms.append(np.linalg.norm(row["norm"] - other["norm"]) / size)
        sketches.append(np.abs(row["sketch"].astype(int) - other["sketch"].astype(int)).max())
    lab.near(f"{name}: norms", max(norms), 1e-3)
    lab.near(f"{name}: steps apart", max(sketches), 1)


def _rows(snapshot: Snapshot) -> dict[bytes, dict[str, Any]]:
    stored = snapshot.read(0, snapshot.commit.slots, ["norm", "sketch"])
    return {
        digest: {name: values[slot] for name, values in stored.items()}
        for digest, slot in snapshot.index.items()
    }


def _scores(report: dict[str, Any]) -> dict[str, float]:
    return {item["digest"]: item["score"] for item in report["queries"][0]["examples"]}
