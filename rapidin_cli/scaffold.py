"""`rin init`: find data, checkpoints and templates; propose; write rin.toml."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.checkpoints import ADAPTER_CONFIG
from rapidin_cli.config import CONFIG_FILE
from rapidin_cli.data.reading import DataSettings, RowError, guess_format, read_values
from rapidin_cli.errors import InputError
from rapidin_cli.project import prepare_rin_folder
from rapidin_cli.resources import template_text

_DEPTH = 5
_IGNORED_FOLDERS = {"node_modules", "__pycache__", "venv", "site-packages", "build", "dist"}
_NOT_DATA = {"package.json", "tokenizer.json", "vocab.json", "trainer_state.json"}


@dataclass(frozen=True)
class Found:
    """A data file or a checkpoint folder, relative to the project where it is inside."""

    path: str
    about: str


@dataclass(frozen=True)
class Proposal:
    """What rin.toml would say."""

    data: list[Found]
    checkpoints: list[tuple[str, Found]]
    base: str
    template: str
    why_template: str


def propose(
    root: Path,
    data: Sequence[str],
    checkpoints: Sequence[str],
    base: str,
    template: str,
) -> Proposal | None:
    """Look around and return a proposal; None in a folder that is a project already.

    Raises:
        InputError: no folder, or a data file that was named cannot be used.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder", hint="make it first")
    if (root / CONFIG_FILE).exists():
        return None
    folders = _checkpoint_folders(root)
    files = [_named_data(root, name) for name in data] or _find_data(root)
    named = [Found(path, "given") for path in checkpoints] or _trained(root, folders)
    template, why = (template, "given") if template else _guess_template(root, files, named, base)
    return Proposal(files, _name(named), base, template, why)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders with their files, nearest first in name order, hidden ones left out."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        depth = len(here.relative_to(root).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < _DEPTH and not name.startswith(".") and name not in _IGNORED_FOLDERS
        )
        yield here, sorted(files)


def _find_data(root: Path) -> list[Found]:
    found = []
    for folder, files in _walk(root):
        if ADAPTER_CONFIG in files or "config.json" in files:
            continue
        for name in files:
            path = folder / name
            if path.suffix not in (".jsonl", ".json") or name in _NOT_DATA:
                continue
            shape = _shape(path)
            if shape:
                found.append((path.stat().st_size, path, shape))
    if not found:
        return []
    # The largest file of a kind is the training set far more often than not.
    _, path, shape = max(found, key=lambda item: (item[0], str(item[1])))
    return [Found(_relative(root, path), f"{shape} rows")]


def _shape(path: Path) -> str | None:
    """Return the format that a file's first row shows, or None."""
    try:
        for _, value in read_values(path, path.name):
            return None if isinstance(value, RowError) else guess_format(value, DataSettings())
    except InputError:
        return None
    return None


def _named_data(root: Path, name: str) -> Found:
    path = root / name
    if not path.is_file():
        raise InputError(f"there is no data file {path}", hint="rin init --data FILE")
    return Found(_relative(root, path), f"{_shape(path) or 'unknown'} rows")


def _checkpoint_folders(root: Path) -> list[tuple[Path, bool]]:
    """Return (folder, is an adapter) of everything that looks like a checkpoint."""
    found = []
    for folder, files in _walk(root):
        if ADAPTER_CONFIG in files:
            found.append((folder, True))
        elif "config.json" in files and any(name.endswith(".safetensors") for name in files):
            found.append((folder, False))
    return found


def _trained(root: Path, folders: list[tuple[Path, bool]]) -> list[Found]:
    """Adapters if there are any (full models are then their bases), else full models."""
    adapters = any(is_adapter for _, is_adapter in folders)
    chosen = [folder for folder, is_adapter in folders if is_adapter == adapters]
    chosen.sort(key=_step)
    about = "adapter" if adapters else "full model"
    return [Found(_relative(root, folder), about) for folder in chosen]


def _step(folder: Path) -> tuple[str, int, str]:
    """Sort checkpoint-2 before checkpoint-10."""
    name, _, number = folder.name.rpartition("-")
    known = number.isdigit()
    return str(folder.parent), int(number) if known else 0, name if known else folder.name


def _name(found: Sequence[Found]) -> list[tuple[str, Found]]:
    names: list[tuple[str, Found]] = []
    for item in found:
        parts = [part for part in Path(item.path).parts if part not in (".", "..", "/")] or [
            "model"
        ]
        taken = {name for name, _ in names}
        length = 1
        while (name := "-".join(parts[-length:])) in taken and length < len(parts):
            length += 1
        while name in taken:
            name += "+"
        names.append((name, item))
    return names


def _guess_template(
    root: Path, files: Sequence[Found], named: Sequence[Found], base: str
) -> tuple[str, str]:
    """Chat if the model has a chat template, as fine-tuning then mostly uses it."""
    for place in (*(item.path for item in named), base, *_bases(root, named)):
        folder = root / place
        if place and folder.is_dir() and _has_chat_template(folder):
            return "chat", f"{place} has a chat template"
    if any(item.about.startswith("alpaca") for item in files):
        return "alpaca", "the data has Alpaca's fields"
    return "plain", "no chat template was found"


def _bases(root: Path, named: Sequence[Found]) -> list[str]:
    return [
        str(_json(root / item.path / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
        for item in named
    ]


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _relative(root: Path, path: Path) -> str:
    try:
        return path.resolve().relative_to(root).as_posix()
    except ValueError:
        return str(path.resolve())


def describe(proposal: Proposal) -> list[str]:
    """Return the proposal in lines for people."""
    lines = [f"data        {item.path}  ({item.about})" for item in proposal.data]
    lines += [
        f"checkpoint  {name}: {item.path}  ({item.about})" for name, item in proposal.checkpoints
    ]
    if proposal.base:
        lines.append(f"base        {proposal.base}")
    lines.append(f"template    {proposal.template}  ({proposal.why_template})")
    if not proposal.data:
        lines.append("no training data was found: set [data] files in rin.toml")
    if not proposal.checkpoints:
        lines.append("no checkpoint was found: add [[checkpoints]] to rin.toml")
    return lines


def initialise(root: Path, proposal: Proposal) -> None:
    """Write rin.toml and make .rin/.

    Raises:
        InputError: the folder cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["toml"] = _toml
    text = environment.from_string(template_text("rin.toml.j2")).render(
        files=[item.path for item in proposal.data],
        template=proposal.template,
        base=proposal.base,
        checkpoints=[(name, item.path) for name, item in proposal.checkpoints],
    )
    try:
        with (root / CONFIG_FILE).open("x", encoding="utf-8") as file:
            file.write(text)
        prepare_rin_folder(root)
    except OSError as error:
        raise InputError(
            f"cannot write {root / CONFIG_FILE}: {error.strerror}", hint="check the folder"
        ) from None


def _toml(value: str | list[str]) -> str:
    """Spell a text or a list of texts in TOML: JSON's strings are a subset of its own."""
    return json.dumps(value, ensure_ascii=False)
