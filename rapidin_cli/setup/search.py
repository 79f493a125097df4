"""What a repository contains: files that may be training data, folders that may be checkpoints.

A home folder or a data lake may be a repository too, so the search is bounded.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rapidin_cli.data.files import TABLES, TEXTS
from rapidin_cli.data.opening import bare_name
from rapidin_cli.data.tables import SPLITS, STATE
from rapidin_cli.errors import InputError
from rapidin_cli.models.learning_rates import STATE_FILE
from rapidin_cli.models.weights import ADAPTER_CONFIG, weights_of
from rapidin_cli.setup.looks import Look, look_at, shards_of
from rapidin_cli.workspace.config import CONFIG_FILE

_DEPTH = 5
_MOST_ENTRIES = 50_000
_MOST_IN_FOLDER = 5_000
_MOST_READ = 100
_IGNORED_FOLDERS = {
    *("node_modules", "__pycache__", "venv", "env", "site-packages", "build", "dist"),
    *("wandb", "mlruns", "lightning_logs", "target"),
}
# Environments of Python and conda, and projects of their own (the demo's).
_FOREIGN = {"pyvenv.cfg", "conda-meta", CONFIG_FILE}
_DATA = (*TEXTS, *TABLES)
_NOT_DATA = {"package.json", "tokenizer.json", "vocab.json", STATE_FILE}
_NOT_TRAINING = re.compile(r"(^|[^a-z])(val|valid|validation|dev|eval|test)([^a-z]|$)")
_STEP = re.compile(r"(?:checkpoint|ckpt|global_step|step|epoch|iter)[-_]?(\d+)\Z", re.IGNORECASE)
_CAUSAL = ("CausalLM", "LMHead", "ForConditionalGeneration")


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder of `datasets`, whose first rows have a known shape."""

    path: Path
    look: Look
    size: int


@dataclass(frozen=True)
class Candidate:
    """A folder that looks like a checkpoint.

    Attributes:
        adapter: whether it is an adapter; otherwise a full model.
        step: of training, from the Trainer's state or the folder's name.
        run: the folder that holds the checkpoints of one training.
        weights: its tensor files; empty if they cannot be loaded.
        problem: why, and what to do.
    """

    path: Path
    adapter: bool
    step: int | None
    run: Path
    weights: tuple[Path, ...]
    problem: str = ""

    @property
    def trained(self) -> bool:
        """Whether it was saved by a training run, and not fetched as the base of one."""
        return self.adapter or self.step is not None

    @property
    def written(self) -> float:
        """When its weights were written."""
        return max((path.stat().st_mtime for path in self.weights), default=0.0)


@dataclass(frozen=True)
class Survey:
    """What was found, the most likely first.

    Attributes:
        unreadable: files that look like data, each with what is wrong with its first rows.
        configs: YAML files, which trainers are started with.
        complete: whether everything was searched.
    """

    data: list[DataFile]
    unreadable: list[tuple[Path, str]]
    configs: list[Path]
    checkpoints: list[Candidate]
    complete: bool


def survey(root: Path) -> Survey:
    """Search a folder, nearest first; what cannot be read is ignored."""
    walk = _Walk(root)
    files: list[tuple[bool, int, str, Path]] = []
    checkpoints = []
    configs: list[Path] = []
    for folder, names in walk.folders():
        configs += [folder / name for name in names if name.endswith((".yaml", ".yml"))]
        found = _candidate(folder, names)
        if found is not None:
            checkpoints.append(found)
        for path, size in _data(folder, names):
            # The largest file of a kind is the training set far more often than not.
            training = not _NOT_TRAINING.search(path.stem.lower())
            files.append((training, size, str(path), path))
    files.sort(reverse=True)
    complete = walk.complete and len(files) <= _MOST_READ
    looks = [(path, look_at(path), size) for _, size, _, path in files[:_MOST_READ]]
    data = [DataFile(path, look, size) for path, look, size in looks if look.shape]
    unreadable = [(path, look.problem) for path, look, _ in looks if look.problem]
    return Survey(data, unreadable, configs, checkpoints, complete)


def _data(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """Yield what may be data in a folder, with its size; of several parts, the first."""
    if SPLITS in names or (STATE in names and "dataset_info.json" in names):
        yield folder, sum(_size(path) or 0 for path in folder.rglob("*.arrow"))
        return
    for name in names:
        path = folder / name
        size = _size(path) if bare_name(path).endswith(_DATA) else None
        if size is None or name in _NOT_DATA:
            continue
        parts, _ = shards_of(path)
        if path == parts[0]:
            yield path, sum(_size(part) or 0 for part in parts)


class _Walk:
    """Goes through folders breadth first, and stops in trees that are huge."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left = _MOST_ENTRIES
        self.complete = True

    def folders(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield folders with the names of their files."""
        waiting = deque([(self._root, 0)])
        while waiting:
            folder, depth = waiting.popleft()
            entries = self._entries(folder)
            if folder != self._root and any(entry.name in _FOREIGN for entry in entries):
                continue
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            if depth < _DEPTH and not {SPLITS, STATE} & {entry.name for entry in entries}:
                waiting += [(folder / name, depth + 1) for name in inner if _wanted(name)]
            others = {entry.name for entry in entries} - set(inner)
            yield folder, sorted(others)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        most = min(self._left, _MOST_IN_FOLDER)
        try:
            with os.scandir(folder) as listing:
                entries = list(islice(listing, most + 1))
        except OSError:
            return []
        if len(entries) > most:
            self.complete = False
        self._left -= len(entries[:most])
        return sorted(entries[:most], key=lambda entry: entry.name)


def _size(path: Path) -> int | None:
    """The size of a file that can be read, or None."""
    try:
        return path.stat().st_size if path.is_file() and os.access(path, os.R_OK) else None
    except OSError:
        return None


def _wanted(folder: str) -> bool:
    return not folder.startswith(".") and folder not in _IGNORED_FOLDERS


def _candidate(folder: Path, names: Sequence[str]) -> Candidate | None:
    adapter = ADAPTER_CONFIG in names
    divided = STATE_FILE in names and _divided(folder)
    if not adapter and not divided and not _is_model(folder, names):
        return None
    named = _STEP.match(folder.name)
    step = read_json(folder / STATE_FILE).get("global_step") if STATE_FILE in names else None
    if not isinstance(step, int):
        step = int(named.group(1)) if named else None
    try:
        weights, problem = weights_of(folder).files, ""
        if not all(_size(file) is not None for file in weights):
            weights, problem = (), "its weights cannot be read"
    except InputError as error:
        weights, problem = (), f"{error.message}; {error.hint}"
    if problem and not adapter and not divided and step is None:
        return None  # a folder with a configuration, and no model
    run = folder.parent if named else folder
    return Candidate(folder, adapter, step, run, weights, problem)


def _divided(folder: Path) -> bool:
    """Whether FSDP or DeepSpeed left its parts of a model there."""
    marks = ("zero_to_fp32.py", "global_step*", "pytorch_model_fsdp*", "*.distcp")
    return any(True for mark in marks for _ in folder.glob(mark))


def _is_model(folder: Path, names: Sequence[str]) -> bool:
    """Whether it is a language model; those that do not say count as one."""
    if "config.json" not in names:
        return False
    kinds = read_json(folder / "config.json").get("architectures") or [_CAUSAL[0]]
    return any(known in str(kind) for kind in kinds for known in _CAUSAL)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
