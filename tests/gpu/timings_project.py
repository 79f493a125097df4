"""A project of the large model: caching it, a question's stages, its curvature."""

import gc
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapidin_cli import Options, Project, Question
from rapidin_cli.gradients.curvature import eigenvectors
from rapidin_storage import Snapshot
from tests.gpu.lab import Lab, NotHereError
from tests.gpu.timings import large_folder
from tests.support import tiny

QUESTION = Question("q", "Where is the cat number 3?", "The cat number 3 walks in the garden.")
CURVATURE_SECONDS = 20.0
CURVATURE_ROWS = 64


class Watch:
    """Notes when caching says what."""

    def __init__(self) -> None:
        self.start_at = time.perf_counter()
        self.at: dict[str, float] = {}
        self.rows = self.tokens = 0

    def start(self, rows: int, tokens: int) -> None:
        self._stamp("start")
        self.rows, self.tokens = rows, tokens

    def ready(self, _: Any) -> None:
        self._stamp("ready")

    def advance(self, *_: Any) -> None:
        self.at.setdefault("first batch", time.perf_counter() - self.start_at)
        self._stamp("last batch")

    def committed(self, _: Snapshot) -> None:
        self._stamp("committed")

    def _stamp(self, name: str) -> None:
        self.at[name] = time.perf_counter() - self.start_at


def caching(lab: Lab) -> None:
    """Cache 200 rows with `Project.cache`: reading, hashing, loading, rows, the commit."""
    project = _project(lab, "")
    watch = Watch()
    total = lab.seconds(lambda: project.cache(devices=str(lab.device), progress=lambda _: watch))
    for name, seconds in watch.at.items():
        lab.note(f"seconds until {name}", seconds)
    lab.note("seconds", total)
    lab.note("rows", watch.rows)
    lab.note("tokens", watch.tokens)
    between = watch.at["last batch"] - watch.at["first batch"]
    lab.note("seconds from the first batch to the last", between)
    lab.note(
        "tokens a second after loading", watch.tokens / (watch.at["last batch"] - watch.at["ready"])
    )


def question(lab: Lab) -> None:
    """Ask, cold and warm, with the moments at which it tells how far it is; then its parts."""
    project = _cached(lab)
    options = Options(score="dot")
    session = project.session(device=str(lab.device))
    for name in ("cold", "warm"):
        stamps: dict[str, list[float]] = {}
        start = time.perf_counter()

        def told(what: str, done: int, of: int, start: float = start, stamps: Any = stamps) -> None:
            del done, of
            stamps.setdefault(what, []).append(time.perf_counter() - start)

        work = partial(session.retrieve, [QUESTION], options, progress=told)
        seconds = lab.seconds(work)
        lab.note(f"{name}: seconds", seconds)
        for what, at in stamps.items():
            lab.note(f"{name}: {what}, first and last told", [round(at[0], 3), round(at[-1], 3)])
        lab.tell(f"{name}: {seconds:.1f} s")
    del session, work
    gc.collect()
    _parts(lab, project, options)


def _parts(lab: Lab, project: Project, options: Options) -> None:
    """Time the stages one by one."""
    opened = project.opened()
    loaded = opened.load(str(lab.device))
    query = loaded.query(QUESTION, options)
    digests = list(opened.dataset.by_digest)
    kept: dict[str, Any] = {}

    def ask() -> None:
        kept["asked"] = loaded.ask(query, options)

    def tokens() -> None:
        kept["asked"].tokens = None
        loaded.tokens(kept["asked"])

    def rank() -> None:
        asked = kept["asked"]
        directions = torch.cat([loaded.direction(asked), asked.tokens.directions])
        kept["found"] = loaded.best([directions], asked.score, digests, 40, 20)

    for name, work in {"the query's gradient": ask, "those of its tokens": tokens}.items():
        lab.note(f"{name}: peak bytes", lab.peak(work))
        lab.note(f"{name}: seconds", lab.seconds(work))
    ask()
    tokens()
    lab.note("sketched ranking: seconds", lab.seconds(rank))
    scorer = loaded.scorer(kept["asked"])
    slots = kept["found"][0].slots[:16]
    chosen = [opened.dataset.distinct[int(slot)][0] for slot in slots]
    lab.note("explained tokens", query.explained)
    lab.note("rows of the parts below", len(chosen))

    def totals() -> None:
        kept["exact"] = scorer.scores(chosen, tokens=False)

    stages = {
        "exact totals": totals,
        "totals and generated tokens": lambda: scorer.scores(chosen, tokens=True),
        "training tokens": lambda: scorer.training_tokens(chosen, kept["exact"].factors),
    }
    for name, work in stages.items():
        lab.note(f"{name}: peak bytes", lab.peak(work))
        lab.note(f"{name}: seconds", lab.seconds(work))
    lab.true("forward mode", scorer.forward_mode)


def curvature(lab: Lab) -> None:
    """Collect EK-FAC of so many layers as there is time for, and ask with it."""
    if lab.device.type not in ("cpu", "cuda"):
        raise NotHereError(f"Project takes no {lab.device} yet")
    side = 32 if lab.small else 2048
    moment = torch.randn(side, 2 * side, device=lab.device)
    pair = moment @ moment.T, torch.eye(16, device=lab.device)
    eigenvectors(pair)
    each = lab.seconds(lambda: eigenvectors(pair))
    lab.note(f"eigenvectors of a side of {side}: seconds", each)
    # Of a block's fourteen factors nine have such a side; the rest and writing take their time.
    blocks = int(np.clip(CURVATURE_SECONDS / (15 * each), 1, 2 if lab.small else 22))
    names = "|".join(map(str, range(blocks)))
    project = _project(lab, rf"layers\.({names})\.")
    at: dict[str, float] = {}
    start = time.perf_counter()

    def told(_: str, done: int, of: int) -> None:
        moment = time.perf_counter() - start
        at.setdefault("first batch", moment)
        at["half" if done <= of // 2 else "all"] = moment

    found: list[Any] = []
    collecting = project.curvature(devices=str(lab.device), progress=told)
    seconds = lab.seconds(lambda: found.extend(collecting))
    layers = found[0][1].layers
    lab.note("blocks", blocks)
    lab.note("layers", len(layers))
    lab.note("rows", found[0][1].examples)
    for name, value in at.items():
        lab.note(f"seconds until {name} of the batches", value)
    lab.note("seconds", seconds)
    lab.true("finite", all(bool(torch.isfinite(layer.values).all()) for layer in layers))
    found.clear()
    del layers
    gc.collect()
    project.cache(devices=str(lab.device))
    options = Options(score="ekfac", top=5, token_top=2)
    session = project.session(device=str(lab.device))
    for name in ("cold", "warm"):
        spent = lab.seconds(lambda: session.retrieve([QUESTION], options))
        lab.note(f"a question with it, {name}: seconds", spent)


def _cached(lab: Lab) -> Project:
    """The project with everything cached, whether the step before did it or not."""
    if lab.device.type not in ("cpu", "cuda"):
        raise NotHereError(f"Project takes no {lab.device} yet")
    project = Project.open(lab.folder / "large") if _ready(lab) else _project(lab, "")
    project.cache(devices=str(lab.device))
    return project


def _ready(lab: Lab) -> bool:
    return (lab.folder / "large" / "rin.toml").exists()


def _project(lab: Lab, layers: str) -> Project:
    """Write data and rin.toml beside the large model."""
    if lab.device.type not in ("cpu", "cuda"):
        raise NotHereError(f"Project takes no {lab.device} yet")
    folder: Path = large_folder(lab)
    tiny.write_jsonl(folder / "data.jsonl", _rows(24 if lab.small else 200, lab.small))
    (folder / "rin.toml").write_text(
        f"""
[data]
files = ["data.jsonl"]
template = "chat"
max_tokens = {64 if lab.small else 1024}
[[checkpoints]]
name = "tuned"
path = "adapter"
[gradient]
dimensions = {2048 if lab.small else 65536}
layers = {json.dumps(layers)}
[curvature]
rows = {CURVATURE_ROWS}
"""
    )
    return Project.open(folder)


def _rows(count: int, small: bool) -> list[dict[str, str]]:
    """Rows of 30 to 1,000 tokens, 180 in the middle."""
    generator = np.random.default_rng(3)
    words = " ".join(row["response"] for row in tiny.rows(72)).split()
    made = []
    for number, row in enumerate(tiny.rows(count)):
        length = int(np.clip(generator.lognormal(np.log(10 if small else 130), 0.7), 5, 700))
        said = " ".join(generator.choice(words, length).tolist())
        made.append({"prompt": row["prompt"], "response": f"{said} {number}."})
    return made
