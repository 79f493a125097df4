"""Checkpoints: where they are, what they are (fingerprint), and loading them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import InputError
from rapidin_storage import canonical_json

if TYPE_CHECKING:
    from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?\Z")
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
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A base model with an adapter, or a full model: folders on this machine.

    Attributes:
        name: as in rin.toml.
        path: folder of the adapter, or of the full model.
        base: folder of the base model; None for a full model.
    """

    name: str
    path: Path
    base: Path | None
    trust_remote_code: bool = False

    @property
    def tokenizer_path(self) -> Path:
        """The checkpoint's own tokenizer, else its base model's."""
        own = any((self.path / name).exists() for name in _TOKENIZER_FILES)
        return self.path if own or self.base is None else self.base


def resolve(root: Path, name: str, path: str, base: str, *, trust: bool = False) -> Checkpoint:
    """Find a checkpoint's folders, fetching hub names.

    Raises:
        InputError: a folder is missing or is no checkpoint, a hub name cannot be had.
    """
    folder = _folder(root, path, f"checkpoint {name!r}")
    if not (folder / ADAPTER_CONFIG).exists():
        if not (folder / "config.json").exists():
            if steps := _steps(folder):
                raise InputError(
                    f"checkpoint {name!r}: {folder} is the folder of a training, with "
                    f"{len(steps)} checkpoints in it",
                    hint=f"set path to one of them in rin.toml, such as {path}/{steps[-1]}",
                )
            raise InputError(
                f"checkpoint {name!r}: {folder} has neither {ADAPTER_CONFIG} nor config.json",
                hint="correct [[checkpoints]] in rin.toml",
            )
        return Checkpoint(name, folder, None, trust)
    adapter = _read_json(folder / ADAPTER_CONFIG)
    if adapter.get("alora_invocation_tokens"):
        raise InputError(
            f"checkpoint {name!r} is an activated LoRA, which acts on a part of a text only",
            hint="rin takes LoRA, rsLoRA and DoRA adapters, and full models",
        )
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
    """Names of the checkpoints that a Trainer left in its output folder, the last one last."""
    found = (path for path in folder.glob("checkpoint-*") if path.is_dir())
    numbered = [path.name for path in found if path.name.rpartition("-")[2].isdigit()]
    return sorted(numbered, key=lambda name: int(name.rpartition("-")[2]))


def is_hub_name(place: str) -> bool:
    """Whether a place may be the name of a model on the hub."""
    return bool(_HUB_NAME.match(place)) and not place.startswith(".")


def _folder(root: Path, place: str, what: str) -> Path:
    local = root / Path(place).expanduser()
    if local.is_dir():
        return local.resolve()
    if not is_hub_name(place):
        raise InputError(f"{what}: no folder {place}", hint="correct the path in rin.toml")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(place, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.gguf"])
        )
    except GatedRepoError:
        raise InputError(
            f"{what}: {place} is no folder here, and the model hub keeps it behind terms",
            hint=f"accept them at https://huggingface.co/{place}, then `hf auth login`",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{what}: {place} is no folder here, and the model hub has no such model for you",
            hint="correct the path in rin.toml, or log in with `hf auth login` if it is private",
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise InputError(
            f"{what}: {place} is no folder here, and the model hub did not deliver it",
            hint=f"correct the path in rin.toml, or where there is a network: hf download {place}",
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="save the checkpoint again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object", hint="save the checkpoint again")
    return value


class Fingerprints:
    """SHA-256 of checkpoints' tensors and configuration.

    Hashing a file's tensors is remembered by its path, size and modification time, so that
    a command on an unchanged 7B model does not read 14 GB again.
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
        for name in _TOKENIZER_FILES:
            path = folder / name
            if not path.exists():
                continue
            if name == "tokenizer.json":
                value = _read_json(path)
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
            known = _read_json(settings)
            parts["tokens"] = {k: known.get(k) for k in ("bos_token", "eos_token", "add_bos_token")}
            parts.setdefault("chat_template", known.get("chat_template"))
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def _model(self, folder: Path) -> dict[str, Any]:
        adapter = folder / ADAPTER_CONFIG
        config = _read_json(adapter if adapter.exists() else folder / "config.json")
        kept = {k: sorted(v) if _is_names(v) else v for k, v in config.items()}
        pattern = "adapter_model*.safetensors" if adapter.exists() else "model*.safetensors"
        files = sorted(folder.glob(pattern))
        if not files:
            raise InputError(
                f"{folder} has no {pattern}: rin reads no pickled weights",
                hint="save the checkpoint with safe_serialization=True",
            )
        tensors: dict[str, str] = {}
        for file in files:
            tensors.update(self._tensors(file))
        return {
            "config": {k: v for k, v in kept.items() if k not in _VOLATILE},
            "tensors": tensors,
        }

    def _tensors(self, file: Path) -> dict[str, str]:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = _hash_tensors(file)
            self._remember()
        return dict(self._known[key])

    def _remember(self) -> None:
        temporary = self._memory.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):  # somebody else's folder: it is only slower
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self._memory)


def _is_names(value: Any) -> bool:
    """PEFT writes sets of module names in any order."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _not_whole(file: Path) -> InputError:
    return InputError(f"{file} is not a whole safetensors file", hint="save the checkpoint again")


def _header(file: Path) -> tuple[dict[str, tuple[str, list[int], Any]], int]:
    """Return dtype, shape and place of each tensor of a safetensors file, and the header's size.

    Raises:
        InputError: it is none.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise _not_whole(file)
        try:
            header = json.loads(stream.read(length))
            entries = {
                str(name): (str(e["dtype"]), list(e["shape"]), e["data_offsets"])
                for name, e in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _not_whole(file) from None
    return entries, length


def _hash_tensors(file: Path) -> dict[str, str]:
    """Hash each tensor of a safetensors file: name -> SHA-256 of dtype, shape and bytes.

    Read by hand, not through `safetensors`, which would need the dtype in NumPy or torch:
    8 bytes of header size, a JSON header, then the data.
    """
    entries, length = _header(file)
    broken = _not_whole(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        hashes = {}
        for name, (dtype, shape, offsets) in entries.items():
            start, stop = map(int, offsets)
            if not 0 <= start <= stop <= size - 8 - length:
                raise broken
            digest = hashlib.sha256(canonical_json([dtype, shape]))
            stream.seek(8 + length + start)
            left = stop - start
            while left:
                block = stream.read(min(left, 1 << 24))
                digest.update(block)
                left -= len(block)
            hashes[name] = digest.hexdigest()
    return hashes


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the terminal."""
    import warnings

    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's tokenizer.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.tokenizer_path
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=checkpoint.trust_remote_code
            )
    except Exception as error:  # the tokenizers library raises nothing narrower
        if not any((folder / name).exists() for name in _TOKENIZER_FILES):
            raise InputError(
                f"checkpoint {checkpoint.name!r} has no tokenizer: there is none in {folder}",
                hint="save it there: tokenizer.save_pretrained(FOLDER)",
            ) from None
        raise _cannot_load("the tokenizer", checkpoint, error) from None


def load_model(checkpoint: Checkpoint, device: str, *, float32: bool = True) -> nn.Module:
    """Load model and adapter on a device; what training trained requires a gradient.

    Weights are float32 with `float32`, and always on a CPU, where autocast casts them;
    else they keep the dtype that they were saved in.

    Raises:
        InputError: the weights cannot be loaded, or some are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype: Any = torch.float32 if float32 or device == "cpu" else "auto"
    folder = checkpoint.base or checkpoint.path
    # A quantised model is put on its device as it is read, and cannot be moved.
    quantised = "quantization_config" in _read_json(folder / "config.json")
    try:
        with quiet_loading():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=checkpoint.trust_remote_code,
                device_map={"": device} if quantised else None,
            )
            _refuse_incomplete(checkpoint, folder, [*found["missing_keys"]])
            _refuse_incomplete(checkpoint, folder, [key for key, *_ in found["mismatched_keys"]])
            if checkpoint.base is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, checkpoint.path, is_trainable=True)
                _refuse_incomplete(checkpoint, checkpoint.path, _missing(model, checkpoint.path))
            loaded: nn.Module = (model if quantised else model.to(device)).eval()
            module: Any
            for module in loaded.modules():
                # bitsandbytes' kernel for this kind of CPU has no gradient, and warns at most.
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False
            return loaded
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise _cannot_load("the model", checkpoint, error) from None


def _refuse_incomplete(checkpoint: Checkpoint, folder: Path, missing: list[str]) -> None:
    """Raise InputError if tensors are missing: loading would make them up, each time anew."""
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"the weights of checkpoint {checkpoint.name!r} are not whole: {folder} lacks "
            f"{min(missing)}{more}",
            hint="save the checkpoint again, or correct its path or [model] base in rin.toml",
        )


def _missing(model: Any, folder: Path) -> list[str]:
    """Return names of an adapter's tensors that its files do not have."""
    from peft import get_peft_model_state_dict

    def bare(name: str) -> str:
        return name.removesuffix(".weight")

    header = (_header(file)[0] for file in folder.glob("adapter_model*.safetensors"))
    saved = {bare(name) for names in header for name in names}
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    return [name for name in wanted if bare(name) not in saved]


def most_tokens(model: nn.Module) -> int:
    """Return how many tokens a model was made for; a large number if it does not say."""
    most = getattr(model.config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else sys.maxsize


def _cannot_load(what: str, checkpoint: Checkpoint, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError):
        reason = f"{reason} is missing or not known"
    if checkpoint.base is not None and re.search("size mismatch|not found in the base", reason):
        return InputError(
            f"the adapter of checkpoint {checkpoint.name!r} does not fit {checkpoint.base}: it "
            "was trained on another model",
            hint="set [model] base in rin.toml to the model that it was trained on",
        )
    reason = reason.partition(". ")[0][:200].rstrip(".")
    return InputError(
        f"{what} of checkpoint {checkpoint.name!r} cannot be loaded: {reason}",
        hint="check the checkpoint's folder; --debug shows the whole error",
    )
