"""The files that hold a checkpoint's tensors: exactly those that loading reads, no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
_SMALL = 700 * 10**6
_SAVE = "save the checkpoint again with safe_serialization=True"


@dataclass(frozen=True)
class Weights:
    """The tensor files of a folder.

    Attributes:
        files: in order of their names.
        pickled: whether they are PyTorch's, which are read with `weights_only`.
        index: tensor -> name of its file, where an index says so.
    """

    files: tuple[Path, ...]
    pickled: bool = False
    index: dict[str, str] | None = None


def weights_of(folder: Path) -> Weights:
    """Return the files that PEFT or transformers load from a folder.

    The plain name comes first, then the index; safetensors before PyTorch's own files.

    Raises:
        InputError: there are none, some are missing, or they must be joined first.
    """
    adapter = (folder / ADAPTER_CONFIG).exists()
    for stem, ending in _names(adapter=adapter):
        plain, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
        if plain.exists():
            return Weights((plain,), ending == "bin")
        if index.exists() and not adapter:
            return _indexed(index, pickled=ending == "bin")
    raise _none(folder, "adapter_model" if adapter else "model")


def is_small(folder: Path) -> bool:
    """Whether a model runs a few rows in seconds here: by its size, or since there is a GPU."""
    import torch

    size = sum(file.stat().st_size for file in weights_of(folder).files)
    return size <= _SMALL or torch.cuda.is_available()


def _names(*, adapter: bool) -> list[tuple[str, str]]:
    if adapter:
        return [("adapter_model", "safetensors"), ("adapter_model", "bin")]
    return [("model", "safetensors"), ("pytorch_model", "bin")]


def _indexed(index: Path, *, pickled: bool) -> Weights:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = {str(tensor): str(file) for tensor, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {index}: {error}", hint=_SAVE) from None
    files = tuple(index.parent / name for name in sorted(set(named.values())))
    for name, file in zip(sorted(set(named.values())), files, strict=True):
        if Path(name).name != name:
            raise InputError(f"{index} names {name}, which is not beside it", hint=_SAVE)
        if not file.exists():
            raise InputError(f"{index.parent} lacks {name}, which its index names", hint=_SAVE)
    return Weights(files, pickled, named)


def _none(folder: Path, stem: str) -> InputError:
    """Say why a folder has no weights that can be loaded, and what makes some of it."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    sharded = [name for name in names if name.startswith("pytorch_model_fsdp")]
    if sharded or any(name.endswith(".distcp") for name in names):
        inner = f"{folder}/{sorted(sharded)[0]}" if sharded else str(folder)
        return InputError(
            f"{folder} holds weights that FSDP has divided",
            hint=f"join them: accelerate merge-weights {inner} {folder}",
        )
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return InputError(
            f"{folder} holds weights that DeepSpeed ZeRO-3 has divided",
            hint=f"join them: python {folder}/zero_to_fp32.py {folder} {folder} "
            "--safe_serialization",
        )
    if any(name.startswith(f"{stem}-") and name.endswith(".safetensors") for name in names):
        return InputError(
            f"{folder} has parts of a model, but no {stem}.safetensors.index.json", hint=_SAVE
        )
    return InputError(f"{folder} has no {stem}.safetensors", hint=_SAVE)


def pickled_tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a PyTorch file; nothing but tensors is unpickled.

    Raises:
        InputError: it holds anything else, or is broken.
    """
    import pickle

    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        tensors = {str(name): tensor for name, tensor in found.items()}
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError):
        raise InputError(
            f"{file} is not a file of tensors only, which is all that rin reads of pickles",
            hint=_SAVE,
        ) from None
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{file}: {name} is not a tensor", hint=_SAVE)
        yield name, tensor
