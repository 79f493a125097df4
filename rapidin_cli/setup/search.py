"""What a repository contains: files that may be training data, folders that may be checkpoints.

A home folder or a data lake may be a repository too, so the search is bounded.
"""

import json
import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
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
from rapidin_cli.setup.looks import Look, look_at
from rapidin_cli.setup.shards import Shards, shards_among
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
# Folders of accelerate, inside a checkpoint that FSDP has divided.
_PARTS = ("pytorch_model_fsdp", "optimizer_")
_CAUSAL = ("CausalLM", "LMHead", "ForConditionalGeneration")


@dataclass(frozen=True)
class DataFile:
    """A file, the parts of a set, or a folder of `datasets`, whose first rows have a known shape.

    Attributes:
        path: of several parts, the first.
        parts: all of them, or only the path.
        missing: numbers of parts that are not there.
    """

    path: Path
    look: Look
    size: int
    parts: tuple[Path, ...]
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A folder that looks like a checkpoint.

    Attributes:
        adapter: whether it is an adapter; otherwise a full model.
        step: of training, from the Trainer's state or the folder's name.
        run: the folder that holds the checkpoints of one training.
        weights: its tensor files; empty if they cannot be loaded.
        problem: why, and what to do.
        base: the model that an adapter names.
        divided: whether training left its weights in parts.
    """

    path: Path
    adapter: bool
    step: int | None
    run: Path
    weights: tuple[Path, ...]
    problem: str = ""
    base: str = ""
    divided: bool = False

    @property
    def trained(self) -> bool:
        """Whether it was saved by a training run, and not fetched as the base of one."""
        return self.adapter or self.divided or self.step is not None

    def may_be_base(self, name: str) -> bool:
        """Whether an adapter that names its base so may mean this, which may have been moved."""
        return bool(name) and not self.adapter and self.path.name == Path(name).name

    @property
    def written(self) -> float:
        """When its weights were written."""
        return max((path.stat().st_mtime for path in self.weights), default=0.0)


@dataclass(frozen=True)
class Survey:
    """What was found, the most likely first.

    Attributes:
        unreadable: files that look like data, whose first rows cannot be used.
        configs: YAML files, which trainers are started with.
        complete: whether everything was searched.
    """

    data: list[DataFile]
    unreadable: list[DataFile]
    configs: list[Path]
    checkpoints: list[Candidate]
    complete: bool


def survey(root: Path) -> Survey:
    """Search a folder, nearest first; what cannot be read is ignored."""
    walk = _Walk(root)
    files: list[tuple[bool, int, str, Path, Shards]] = []
    checkpoints = []
    configs: list[Path] = []
    for folder, names, inner in walk.folders():
        configs += [folder / name for name in names if name.endswith((".yaml", ".yml"))]
        found = _candidate(folder, names, inner)
        if found is not None:
            checkpoints.append(found)
        for path, size, parts in _data(folder, names):
            # The largest file of a kind is the training set far more often than not.
            training = not _NOT_TRAINING.search(path.stem.lower())
            files.append((training, size, str(path), path, parts))
    files.sort(reverse=True, key=lambda each: each[:3])
    complete = walk.complete and len(files) <= _MOST_READ
    looked = [
        DataFile(
            path,
            look_at(path, path.relative_to(root).as_posix()),
            size,
            tuple(path.with_name(n) for n in parts.names),
            parts.missing,
        )
        for _, size, _, path, parts in files[:_MOST_READ]
    ]
    data = [each for each in looked if each.look.shape]
    unreadable = [each for each in looked if each.look.problem]
    return Survey(data, unreadable, configs, checkpoints, complete)


def _data(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, int, Shards]]:
    """Yield what may be data in a folder, with its size; of several parts, the first."""
    if _is_dataset(names):
        size = sum(_size(path) or 0 for path in folder.rglob("*.arrow"))
        yield folder, size, Shards((folder.name,), folder.name)
        return
    sizes = {
        name: _size(folder / name)
        for name in names
        if bare_name(Path(name)).endswith(_DATA) and name not in _NOT_DATA
    }
    for parts in shards_among(name for name, size in sizes.items() if size is not None):
        yield folder / parts.names[0], sum(sizes[name] or 0 for name in parts.names), parts


def _is_dataset(names: Collection[str]) -> bool:
    """Whether `datasets` saved a folder of these files."""
    return SPLITS in names or (STATE in names and "dataset_info.json" in names)


class _Walk:
    """Goes through folders breadth first, and stops in trees that are huge."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left = _MOST_ENTRIES
        self.complete = True

    def folders(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Yield folders with the names of their files and of the folders in them."""
        waiting = deque([(self._root, 0)])
        while waiting:
            folder, depth = waiting.popleft()
            entries = self._entries(folder)
            if folder != self._root and any(entry.name in _FOREIGN for entry in entries):
                continue
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            others = {entry.name for entry in entries} - set(inner)
            if depth < _DEPTH and not _is_dataset(others):
                waiting += [(folder / name, depth + 1) for name in inner if _wanted(name)]
            yield folder, sorted(others), inner

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


def _candidate(folder: Path, names: Sequence[str], inner: Sequence[str]) -> Candidate | None:
    adapter = ADAPTER_CONFIG in names
    divided = _is_divided(folder, names, inner)
    if not adapter and not divided and not _is_model(folder, names):
        return None
    # PEFT saves an adapter that has a name in a folder below: checkpoint-4/sft.
    holder = folder.parent if adapter and _STEP.match(folder.parent.name) else folder
    named = _STEP.match(holder.name)
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
    run = folder
    if named:
        run = holder.parent if holder == folder else holder.parent / folder.name
    config = read_json(folder / ADAPTER_CONFIG) if adapter else {}
    base = str(config.get("base_model_name_or_path") or "")
    return Candidate(folder, adapter, step, run, weights, problem, base, divided)


def _is_divided(folder: Path, names: Sequence[str], inner: Sequence[str]) -> bool:
    """Whether FSDP or DeepSpeed left its parts of a model there."""
    if folder.name.startswith(_PARTS):
        return False
    deepspeed = "zero_to_fp32.py" in names or (
        bool({STATE_FILE, "latest"} & set(names))
        and any(name.startswith("global_step") for name in inner)
    )
    fsdp = any(name.startswith(_PARTS[0]) for name in (*inner, *names))
    return deepspeed or fsdp or any(name.endswith(".distcp") for name in names)


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
