"""Safetensors files, read by hand: their header, and the hash of each tensor."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.weights import pickled_tensors, weights_of
from rapidin_storage import canonical_json

# What safetensors call PyTorch's types.
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}

_FACTOR = re.compile(r"\.lora_[AB]\.(.*\.)?weight$")


def _not_whole(file: Path) -> InputError:
    return InputError(f"{file} is not a valid safetensors file", hint="save the checkpoint again")


def tensor_header(file: Path) -> tuple[dict[str, tuple[str, list[int], Any]], int]:
    """Return dtype, shape and place of each tensor of a safetensors file, and the header's size.

    Raises:
        InputError: it is not one.
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


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of an adapter or model, by its name in the file.

    Raises:
        InputError: there are no weights, or they cannot be read.
    """
    weights = weights_of(folder)
    if weights.pickled:
        return {
            name: list(tensor.shape)
            for file in weights.files
            for name, tensor in pickled_tensors(file)
        }
    return {
        name: shape
        for file in weights.files
        for name, (_, shape, _) in tensor_header(file)[0].items()
    }


def hash_pickled(file: Path) -> dict[str, str]:
    """Hash each tensor of a PyTorch file as `hash_tensors` does."""
    import torch

    hashes = {}
    for name, tensor in pickled_tensors(file):
        kind = _DTYPES.get(str(tensor.dtype).removeprefix("torch."), str(tensor.dtype))
        digest = hashlib.sha256(canonical_json([kind, list(tensor.shape)]))
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        hashes[name] = digest.hexdigest()
    return hashes


def hash_tensors(file: Path) -> dict[str, str]:
    """Hash each tensor of a safetensors file: name -> SHA-256 of dtype, shape and bytes.

    Read by hand, not through `safetensors`, which would need the dtype in NumPy or torch:
    8 bytes of header size, a JSON header, then the data.
    """
    entries, length = tensor_header(file)
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


def only_factors(adapter: Path) -> bool:
    """Whether an adapter holds nothing but low-rank factors of linear layers.

    Raises:
        InputError: there are no weights, or they cannot be read.
    """
    return all(_FACTOR.search(name) for name in tensor_shapes(adapter))
