"""Checkpoints: where they are, what they are (fingerprint), and loading them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.kinds import check_adapter, check_start
from rapidin_cli.models.weights import ADAPTER_CONFIG, weights_of

_NOT_FETCHED = ["*.bin", "*.h5", "*.msgpack", "*.gguf"]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?\Z")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
# Beside the weights, what decides what a checkpoint computes and reads.
_DECIDING = (
    *(ADAPTER_CONFIG, "config.json", "chat_template.jinja", "tokenizer_config.json"),
    *(*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json"),
)

Stamp = tuple[str, tuple[int, int, int]]
"""A file's path, with its size, time (ns) and inode."""


@dataclass(frozen=True)
class Checkpoint:
    """A base model with an adapter, or a full model: folders on this machine.

    Attributes:
        name: as in rin.toml.
        path: folder of the adapter, or of the full model.
        base: folder of the base model; None for a full model.
        start: whether it is the adapter before training: without effect.
        tokens: folder of the tokenizer, if it is another checkpoint's.
        stamps: of the files that decide what it computes, when they were hashed.
    """

    name: str
    path: Path
    base: Path | None
    trust_remote_code: bool = False
    start: bool = False
    tokens: Path | None = None
    stamps: tuple[Stamp, ...] = ()

    def stamped(self) -> Checkpoint:
        """Return the same with the present stamps, by which `check_unchanged` goes.

        Raises:
            InputError: it has no weights that can be loaded.
        """
        return replace(self, stamps=self._stamps())

    def check_unchanged(self) -> None:
        """Raise InputError if a file is another one than when the checkpoint was stamped."""
        if not self.stamps:
            return
        before = dict(self.stamps)
        try:
            now = dict(self._stamps())
        except (OSError, InputError):
            now = {}
        changed = [path for path in before if now.get(path) != before[path]] or [
            path for path in now if path not in before
        ]
        if changed:
            raise InputError(
                f"checkpoint {self.name!r} was written to while it was being used: {changed[0]} "
                "has changed, so nothing that was computed since is kept",
                hint="wait until training has saved it, then run the command again",
            )

    def _stamps(self) -> tuple[Stamp, ...]:
        paths = []
        for folder in (self.path, self.base):
            if folder is not None:
                paths += [*weights_of(folder).files]
                paths += [folder / name for name in _DECIDING if (folder / name).exists()]
        found = ((str(path), path.stat()) for path in paths)
        return tuple((path, (stat.st_size, stat.st_mtime_ns, stat.st_ino)) for path, stat in found)

    @property
    def tokenizer_path(self) -> Path:
        """The checkpoint's own tokenizer, else its base model's."""
        if self.tokens is not None:
            return self.tokens
        own = any((self.path / name).exists() for name in TOKENIZER_FILES)
        return self.path if own or self.base is None else self.base


def resolve_start(
    root: Path, name: str, path: str, base: str, *, trust: bool = False
) -> Checkpoint:
    """Find the model before the training that led to `path`.

    Raises:
        InputError: see `resolve`; or the model before cannot be had.
    """
    after = resolve(root, name, path, base, trust=trust)
    if after.base is not None:
        check_start(name, read_json(after.path / ADAPTER_CONFIG))
        return replace(after, start=True)
    if not base:
        raise InputError(
            f"checkpoint {name!r} is to be the model before a training of all weights, and "
            "[model] base does not name that model",
            hint=f"set [model] base in rin.toml, or remove {name!r} from it",
        )
    before = resolve(root, name, base, "", trust=trust)
    if before.base is not None:
        raise InputError(
            f"checkpoint {name!r}: [model] base = {base!r} is an adapter, not the full model "
            "that training began with",
            hint="set [model] base in rin.toml to that model",
        )
    tokens = None if before.tokenizer_path == after.tokenizer_path else after.tokenizer_path
    return replace(before, tokens=tokens)


def resolve(root: Path, name: str, path: str, base: str, *, trust: bool = False) -> Checkpoint:
    """Find a checkpoint's folders, fetching hub names.

    Raises:
        InputError: a folder is missing or not a checkpoint, or a hub model cannot be fetched.
    """
    folder = _folder(root, path, f"checkpoint {name!r}")
    if not (folder / ADAPTER_CONFIG).exists():
        if not (folder / "config.json").exists():
            if steps := _steps(folder):
                raise InputError(
                    f"checkpoint {name!r}: {folder} is the output folder of a training run, with "
                    f"{len(steps)} checkpoints in it",
                    hint=f"set path to one of them in rin.toml, such as {path}/{steps[-1]}",
                )
            inner = sorted(each.parent.name for each in folder.glob(f"*/{ADAPTER_CONFIG}"))
            hint = f"set path to the adapter in it: {path}/{inner[0]}" if inner else ""
            raise InputError(
                f"checkpoint {name!r}: {folder} has neither {ADAPTER_CONFIG} nor config.json",
                hint=hint or "correct [[checkpoints]] in rin.toml",
            )
        return Checkpoint(name, folder, None, trust)
    adapter = read_json(folder / ADAPTER_CONFIG)
    check_adapter(name, adapter)
    named = base or adapter.get("base_model_name_or_path") or ""
    if not named:
        raise InputError(
            f"checkpoint {name!r} is an adapter that does not name its base model",
            hint="set [model] base in rin.toml",
        )
    below = _folder(root, named, f"base model of {name!r}")
    if (below / ADAPTER_CONFIG).exists():
        raise InputError(
            f"the base model of {name!r} is itself an adapter: {below}",
            hint="merge that one into its own base (PEFT's merge_and_unload), and set [model] base",
        )
    return Checkpoint(name, folder, below, trust)


def _steps(folder: Path) -> list[str]:
    """Names of the checkpoints that a Trainer left in its output folder, in order of step."""
    found = (path for path in folder.glob("checkpoint-*") if path.is_dir())
    numbered = [path.name for path in found if path.name.rpartition("-")[2].isdigit()]
    return sorted(numbered, key=lambda name: int(name.rpartition("-")[2]))


def is_hub_name(place: str) -> bool:
    """Whether a place may be the name of a model on the hub."""
    return bool(_HUB_NAME.match(place)) and not place.startswith(".")


def is_here(root: Path, place: str) -> bool:
    """Whether a folder or hub model can be opened without asking the hub."""
    if (root / Path(place).expanduser()).is_dir():
        return True
    if not is_hub_name(place):
        return False
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(place, ignore_patterns=_NOT_FETCHED, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return False
    return True


def _folder(root: Path, place: str, what: str) -> Path:
    local = root / Path(place).expanduser()
    if local.is_dir():
        return local.resolve()
    if not is_hub_name(place):
        raise InputError(f"{what}: cannot find {place}", hint="correct the path in rin.toml")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(place, ignore_patterns=_NOT_FETCHED))
    except GatedRepoError:
        raise InputError(
            f"{what}: {place} is not a folder here, and the model on the hub is gated",
            hint=f"accept its terms at https://huggingface.co/{place}, then `hf auth login`",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{what}: {place} is not a folder here, and not a model on the hub that you can access",
            hint="correct the path in rin.toml, or log in with `hf auth login` if it is private",
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise InputError(
            f"{what}: {place} is not a folder here, and could not be fetched from the model hub",
            hint=f"correct the path in rin.toml, or download it when online: hf download {place}",
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file of a checkpoint.

    Raises:
        InputError: it cannot be read, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="save the checkpoint again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object", hint="save the checkpoint again")
    return value
