"""Large sums in a file without a name: the system's page cache holds them, not the process."""

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch

# Less than this stays in memory, and so much of a file before it is given back.
_LEAST, _RESTS = 2**26, 2**26


class Scratch:
    """float32 tensors, zeros at first, that need not fit in memory.

    Those of a CPU are mapped from a file, which takes its whole room on the disk at once. Without
    that room they are ordinary tensors, and so they are on other devices.

    Args:
        shapes: of the tensors.
        folder: of the file; None for the system's own.

    Attributes:
        tensors: to be changed in place.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], device: torch.device, folder: Path | None = None
    ) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        self._map = None
        if device.type == "cpu" and 4 * sum(sizes) > _LEAST:
            self._map = _mapped(4 * sum(sizes), folder)
        self._touched = 0
        if self._map is None:
            self.tensors = [torch.zeros(shape, device=device) for shape in shapes]
            return
        flat = torch.frombuffer(self._map, dtype=torch.float32)
        parts = flat.split(sizes)
        self.tensors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def used(self, number: int) -> None:
        """Say that a tensor was read or changed; now and then, memory is given back."""
        self._touched += self.tensors[number].nbytes
        if self._map is not None and self._touched > _RESTS:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def _mapped(size: int, folder: Path | None) -> mmap.mmap | None:
    """Map a new file, or return None where its room cannot be had beforehand."""
    if not hasattr(os, "posix_fallocate"):
        return None  # a disk that fills up later would end the process
    with contextlib.suppress(OSError):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        file: IO[bytes]
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    return None
