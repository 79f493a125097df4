"""Sums of a curvature collection that is under way, kept in a folder: a kill costs half a minute.

Two files: the moments, or the bases that they became, and then the squares of gradients in those
bases. Each is a line of JSON and the tensors' numbers, and is written whole. A file of another
collection, or a damaged one, is not taken.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapidin_cli.gradients.curvature import Kept, Sums
from rapidin_cli.gradients.scratch import Scratch
from rapidin_cli.output.files import whole_file

SAVE_SECONDS = 30.0
"""Between two times; ten times what the last one took, if that is longer."""

_PAIRS, _VALUES = "pairs.sums", "values.sums"
_LONGEST = 4096  # bytes of the line of JSON


class PartialCurvature(Kept):
    """Keeps the sums of one collection.

    Args:
        folder: where.
        key: what they are sums of. Other ones are not taken.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._bases = ""  # names the bases that squares belong to
        self._next = time.monotonic() + SAVE_SECONDS

    def load(self, sums: Sums) -> None:
        """Fill in the sums of an earlier run that was cut off."""
        for left in self._folder.glob(".*.tmp"):  # it was killed as it wrote
            left.unlink(missing_ok=True)
        if (about := self._read(_PAIRS, sums.pairs)) is None:
            return
        sums.passed, sums.decomposed = about["passed"], about["decomposed"]
        self._bases = about["bases"]
        if self._bases and (about := self._read(_VALUES, sums.values, self._bases)) is not None:
            sums.summed = about["summed"]

    def save(self, sums: Sums, *, phase: bool = False) -> None:
        """Keep them, if the last time was a while ago or a phase is over."""
        start = time.monotonic()
        if start < self._next and not phase:
            return
        with contextlib.suppress(OSError):  # a full disk, say: then a kill costs more
            self._folder.mkdir(parents=True, exist_ok=True)
            if sums.summed:
                self._write(_VALUES, sums.values, {"bases": self._bases, "summed": sums.summed})
            else:
                if sums.decomposed == len(sums.pairs):
                    self._bases = uuid.uuid4().hex
                about = {"passed": sums.passed, "decomposed": sums.decomposed}
                self._write(_PAIRS, sums.pairs, {"bases": self._bases, **about})
        took = time.monotonic() - start
        self._next = start + took + max(SAVE_SECONDS, 10 * took)

    def _write(self, name: str, sums: Scratch, about: dict[str, str | int]) -> None:
        with whole_file(self._folder / name) as temporary, temporary.open("wb") as file:
            file.write(json.dumps({"key": self._key, **about}).encode() + b"\n")
            for number, tensor in enumerate(sums.tensors):
                tensor.cpu().numpy().tofile(file)
                sums.used(number)

    def _read(self, name: str, sums: Scratch, bases: str | None = None) -> dict[str, Any] | None:
        """Read a file, if it is whole and of this collection; of these bases, if any are named."""
        size = sum(tensor.nbytes for tensor in sums.tensors)
        try:
            with (self._folder / name).open("rb") as file:
                first = file.readline(_LONGEST)
                about: dict[str, Any] = json.loads(first)
                ours = about["key"] == self._key and bases in (None, about["bases"])
                if not ours or os.fstat(file.fileno()).st_size != len(first) + size:
                    return None
                for number, tensor in enumerate(sums.tensors):
                    read = np.fromfile(file, np.float32, tensor.numel())
                    tensor.copy_(torch.from_numpy(read).view(tensor.shape))
                    sums.used(number)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # damaged: begin anew
            for number, tensor in enumerate(sums.tensors):
                tensor.zero_()
                sums.used(number)
            return None
        return about


def remove(folder: Path) -> None:
    """Remove what was kept: the collection is stored."""
    shutil.rmtree(folder, ignore_errors=True)
