"""Fingerprints: SHA-256 of what a checkpoint computes, and of what turns a row into tokens."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import TOKENIZER_FILES, Checkpoint, read_json
from rapidin_cli.models.tensor_files import hash_pickled, hash_tensors
from rapidin_cli.models.weights import ADAPTER_CONFIG, Weights, weights_of
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

# What changes the tokens of a text, with what holds where a tokenizer does not say.
_CHANGING: dict[str, Any] = {
    "add_eos_token": False,
    "add_prefix_space": False,
    "do_lower_case": False,
    "handle_chinese_chars": True,
    "legacy": True,
    "split_special_tokens": False,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
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
            InputError: no weights that can be loaded, or a tensor twice.
        """
        folders = [checkpoint.path] + ([checkpoint.base] if checkpoint.base is not None else [])
        parts = [{**self._model(folder), **_code(checkpoint, folder)} for folder in folders]
        if checkpoint.start:
            parts.append({"start": True})
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
        known = _object(folder / "tokenizer_config.json")
        if known:
            parts["tokens"] = {k: known.get(k) for k in ("bos_token", "eos_token", "add_bos_token")}
            parts.setdefault("chat_template", known.get("chat_template"))
        # Only what is not ordinary, so that ordinary fingerprints stay as they are.
        parts |= _settings(known) | _more_tokens(folder, known) | _code(checkpoint, folder)
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def _model(self, folder: Path) -> dict[str, Any]:
        adapter = folder / ADAPTER_CONFIG
        config = read_json(adapter if adapter.exists() else folder / "config.json")
        kept = {k: sorted(v) if _is_names(v) else v for k, v in config.items()}
        weights = weights_of(folder)
        tensors: dict[str, str] = {}
        for file in weights.files:
            for name, digest in self._tensors(file, weights).items():
                if name in tensors:
                    raise InputError(
                        f"{folder} holds {name} twice, in {file.name} and in another file",
                        hint="save the checkpoint again into an empty folder",
                    )
                tensors[name] = digest
        return {"config": {k: v for k, v in kept.items() if k not in _VOLATILE}, "tensors": tensors}

    def _tensors(self, file: Path, weights: Weights) -> dict[str, str]:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = hash_pickled(file) if weights.pickled else hash_tensors(file)
            self._remember()
        return dict(self._known[key])

    def _remember(self) -> None:
        with suppress(OSError):  # somebody else's folder: it is only slower
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._memory, json.dumps(self._known))


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _settings(known: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer that change tokens, where they are not the default."""
    found = {k: known[k] for k, default in _CHANGING.items() if known.get(k, default) != default}
    found = {k: v for k, v in found.items() if v is not None}
    return {"settings": found} if found else {}


def _more_tokens(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Special tokens that loading adds to those of tokenizer.json, and others' bos and eos."""
    vocabulary = _object(folder / "tokenizer.json")
    there = {
        str(token.get("content"))
        for token in vocabulary.get("added_tokens") or ()
        if isinstance(token, dict)
    }
    mapped = _object(folder / "special_tokens_map.json")
    named = [
        _object(folder / "added_tokens.json"),
        *(
            {key: value for key, value in each.items() if key.endswith(("_token", "_tokens"))}
            for each in (known, mapped)
        ),
    ]
    tokens = {text for part in named[1:] for value in part.values() for text in _texts(value)}
    more = sorted((tokens | set(named[0])) - there)
    found: dict[str, Any] = {"more_tokens": more} if more and vocabulary else {}
    ends = {k: mapped[k] for k in ("bos_token", "eos_token") if k in mapped and k in known}
    other = {k: v for k, v in ends.items() if set(_texts(v)) != set(_texts(known[k]))}
    return found | ({"special_tokens_map": other} if other else {})


def _texts(value: Any) -> list[str]:
    """The tokens that a setting names: a text, an object with its content, or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        if "content" in value:
            return [str(value["content"])]
        return [text for each in value.values() for text in _texts(each)]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def _code(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Hashes of the Python code in a folder, if it is trusted and so run."""
    if not checkpoint.trust_remote_code:
        return {}
    files = sorted(folder.glob("*.py"))
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {"code": found} if found else {}


def _is_names(value: Any) -> bool:
    """PEFT writes sets of module names in any order."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
