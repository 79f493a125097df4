"""How much memory a batch takes, estimated before the first one runs."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.autograd.graph import saved_tensors_hooks

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.errors import out_of_memory
from rapidin_cli.gradients.capture.watching import captured
from rapidin_cli.gradients.passes import Passes

_PROBE_TOKENS = 32, 64
# What a batch takes on a CPU beyond the process and the model; of a GPU, a share of what is free.
_CPU_BYTES = 3 * 2**28
_GPU_SHARE = 0.5
# What a process takes beyond the model while it answers questions, less than 1.5 GB, and
# what it may take in any case.
_CPU_PROCESS, _LEAST_BYTES = 1_300_000_000, 2**28
# What a token takes as a multiple of what a forward pass keeps of it: gradients on their way, and
# what the allocator cannot use again. Measured with SmolLM2-135M: 1.4 to 2.1.
_OVERHEAD = 2.1


# oneDNN keeps a kernel for every shape that it has met, a thousand of them: with rows of many
# lengths, some 30 MB for each length of SmolLM2-135M in bfloat16. These are those of a few.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 3 * 2**18


def spare() -> None:
    """Have large tensors of this process go back to the system as soon as they are freed.

    The C library keeps what is freed for what comes next, but aligned pieces do not fit their own
    places again: a row of 606 tokens took 1.3 GB of SmolLM2-135M, most of it gaps, and now 0.45,
    for a fifth more time; short rows take what they took.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)


def bound_kernels() -> None:
    """Bound the memory of kernels; has to be called before the first product of matrices."""
    for name, most in _KERNELS.items():
        os.environ.setdefault(name, most)


@dataclass(frozen=True)
class BatchBytes:
    """What a batch takes beside the model.

    Attributes:
        token: bytes of each padded token.
        once: bytes whatever its size, such as weights that autocast has rounded.
    """

    token: int
    once: int

    def of(self, tokens: int) -> int:
        """Return the bytes of so many padded tokens."""
        return self.once + tokens * self.token


def batch_bytes(passes: Passes) -> BatchBytes:
    """Measure what batches take, from what two short forward passes keep for the backward pass."""
    short, long = (kept_bytes(passes, length) for length in _PROBE_TOKENS)
    each = (long - short) / (_PROBE_TOKENS[1] - _PROBE_TOKENS[0])
    return BatchBytes(int(_OVERHEAD * each), int(short - _PROBE_TOKENS[0] * each))


def kept_bytes(passes: Passes, length: int) -> int:
    """Count what autograd saves, and the inputs of the watched layers."""
    weights = {p.untyped_storage().data_ptr() for p in passes.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # Without its history: a graph that holds its own outputs is never freed.
        return tensor.detach()

    def watch(module: Any, inputs: tuple[Any, ...]) -> None:
        del module
        keep(inputs[0])

    ids = torch.arange(length, device=passes.device)[None] % passes.vocabulary
    labels = torch.full_like(ids, IGNORED)
    labels[0, -1] = ids[0, -1]
    handles = [
        use.module.register_forward_pre_hook(watch) for t in passes.targets for use in t.uses
    ]
    try:
        with captured(passes.model, passes.targets, lambda *_: None):
            # The graph must live until all of it is counted, or memory is counted twice.
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                losses = passes.token_losses(ids, labels)
            del losses
    finally:
        for handle in handles:
            handle.remove()
    return sum(kept.values())


def batch_limit(device: torch.device, takes: BatchBytes) -> int:
    """Return how many padded tokens a batch may have; 16 or more."""
    room = _CPU_BYTES
    if device.type == "cuda":
        room = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return tokens_in(room, takes) // 16 * 16 or 16


def tokens_in(room: int, takes: BatchBytes) -> int:
    """Return how many padded tokens fit in so many bytes."""
    return max(0, room - takes.once) // max(1, takes.token)


def room_left(passes: Passes) -> int:
    """Return the bytes that may be taken now: up to the model and 1.5 GB, or half of a GPU's rest.

    What was freed is given back to the system first, so that it does not count.
    """
    if passes.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(passes.device)
        return int(_GPU_SHARE * free)
    give_back()
    return max(_LEAST_BYTES, _cpu_room(passes))


def make_room(passes: Passes, needed: int = _CPU_BYTES) -> None:
    """Give freed memory back, if what is needed, a batch say, would not fit beside it.

    It is what comes of tensors of many sizes: places that fit none of the next ones.
    """
    if passes.device.type == "cpu" and _cpu_room(passes) < needed:
        give_back()


def _cpu_room(passes: Passes) -> int:
    return passes.weight_bytes + _CPU_PROCESS - int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Give freed memory back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_halves(items: list[int], run: Callable[[list[int]], None]) -> bool:
    """Run a batch, or its halves where it does not fit in memory; return whether it was halved."""
    try:
        run(items)
    except (MemoryError, RuntimeError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    else:
        return False
    release_memory()
    half = len(items) // 2
    in_halves(items[:half], run)
    in_halves(items[half:], run)
    return True


def release_memory() -> None:
    """Give what the allocator of GPUs keeps for later back to it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
