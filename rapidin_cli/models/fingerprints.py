"""Fingerprints: SHA-256 of what a checkpoint computes, and of what turns a row into tokens."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import ADAPTER_CONFIG, TOKENIZER_FILES, Checkpoint, read_json
from rapidin_cli.models.tensor_files import hash_tensors
from rapidin_cli.output.files import write_whole
from rapidin_storage import canonical_json

# What is written beside the weights but does not change what the model computes.
_VOLATILE = {
    "_name_or_path",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


class Fingerprints:
    """SHA-256 of checkpoints' tensors and configuration.

    The hashes of a file's tensors are remembered by its path, size and modification time, so
    that a command on an unchanged 7B model does not read 14 GB again.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known: dict[str, Any] = json.loads(memory.read_text())
        except (OSError, ValueError):
            self._known = {}

    def checkpoint(self, checkpoint: Checkpoint) -> str:
        """Fingerprint of all weights that take part, base model included.

        Raises:
            InputError: no safetensors, or unreadable ones.
        """
        parts = [self._model(checkpoint.path)]
        if checkpoint.base is not None:
            parts.append(self._model(checkpoint.base))
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def tokenizer(self, checkpoint: Checkpoint, rendering: dict[str, Any]) -> str:
        """Fingerprint of what turns a row into tokens: vocabulary, templates, settings."""
        folder = checkpoint.tokenizer_path
        parts: dict[str, Any] = {"rendering": rendering}
        for name in TOKENIZER_FILES:
            path = folder / name
            if not path.exists():
                continue
            if name == "tokenizer.json":
                value = read_json(path)
                # State of the last call, not part of the vocabulary.
                for key in ("padding", "truncation"):
                    value.pop(key, None)
                parts[name] = hashlib.sha256(canonical_json(value)).hexdigest()
            else:
                parts[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        template = folder / "chat_template.jinja"
        if template.exists():
            parts["chat_template"] = template.read_text(encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        if settings.exists():
            known = read_json(settings)
            parts["tokens"] = {k: known.get(k) for k in ("bos_token", "eos_token", "add_bos_token")}
            parts.setdefault("chat_template", known.get("chat_template"))
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def _model(self, folder: Path) -> dict[str, Any]:
        adapter = folder / ADAPTER_CONFIG
        config = read_json(adapter if adapter.exists() else folder / "config.json")
        kept = {k: sorted(v) if _is_names(v) else v for k, v in config.items()}
        pattern = "adapter_model*.safetensors" if adapter.exists() else "model*.safetensors"
        files = sorted(folder.glob(pattern))
        if not files:
            raise InputError(
                f"{folder} has no {pattern}: rin does not read pickled weights",
                hint="save the checkpoint with safe_serialization=True",
            )
        tensors: dict[str, str] = {}
        for file in files:
            tensors.update(self._tensors(file))
        return {"config": {k: v for k, v in kept.items() if k not in _VOLATILE}, "tensors": tensors}

    def _tensors(self, file: Path) -> dict[str, str]:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = hash_tensors(file)
            self._remember()
        return dict(self._known[key])

    def _remember(self) -> None:
        with suppress(OSError):  # somebody else's folder: it is only slower
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._memory, json.dumps(self._known))


def _is_names(value: Any) -> bool:
    """PEFT writes sets of module names in any order."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
