"""Sums of a curvature collection that is under way, kept in a folder: a kill costs half a minute.

Two files: the moments, or the bases that they became, and then the squares of gradients in those
bases. Each is written whole. A file of another collection, or a damaged one, is not taken.
"""

import contextlib
import shutil
import time
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rapidin_cli.gradients.curvature import Kept, Sums
from rapidin_cli.output.files import whole_file

SAVE_SECONDS = 30.0
"""Between two times; ten times what the last one took, if that is longer."""

_PAIRS, _VALUES = "pairs.safetensors", "values.safetensors"


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

    def load(self, device: torch.device) -> Sums | None:
        """Return the sums of an earlier run that was cut off."""
        for left in self._folder.glob(".*.tmp"):  # it was killed as it wrote
            left.unlink(missing_ok=True)
        if (found := self._read(_PAIRS, device)) is None:
            return None
        about, tensors = found
        pairs = [(tensors[f"{n}.0"], tensors[f"{n}.1"]) for n in range(len(tensors) // 2)]
        sums = Sums(pairs, int(about["passed"]), int(about["decomposed"]))
        self._bases = about["bases"]
        found = self._read(_VALUES, device)
        if self._bases and found is not None and found[0]["bases"] == self._bases:
            about, tensors = found
            sums.values = [tensors[str(n)] for n in range(len(tensors))]
            sums.summed = int(about["summed"])
        return sums

    def save(self, sums: Sums, *, phase: bool = False) -> None:
        """Keep them, if the last time was a while ago or a phase is over."""
        start = time.monotonic()
        if start < self._next and not phase:
            return
        with contextlib.suppress(OSError):  # a full disk, say: then a kill costs more
            self._folder.mkdir(parents=True, exist_ok=True)
            if sums.values:
                tensors = {str(n): value for n, value in enumerate(sums.values)}
                self._write(_VALUES, tensors, {"bases": self._bases, "summed": sums.summed})
            else:
                if sums.decomposed == len(sums.pairs):
                    self._bases = uuid.uuid4().hex
                tensors = {f"{n}.{s}": t for n, pair in enumerate(sums.pairs)
                           for s, t in enumerate(pair)}  # fmt: skip
                about = {"passed": sums.passed, "decomposed": sums.decomposed}
                self._write(_PAIRS, tensors, {"bases": self._bases, **about})
        took = time.monotonic() - start
        self._next = start + took + max(SAVE_SECONDS, 10 * took)

    def _write(
        self, name: str, tensors: dict[str, torch.Tensor], about: dict[str, str | int]
    ) -> None:
        told = {"key": self._key, **{key: str(value) for key, value in about.items()}}
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        with whole_file(self._folder / name) as temporary:
            save_file(whole, temporary, told)

    def _read(
        self, name: str, device: torch.device
    ) -> tuple[dict[str, str], dict[str, torch.Tensor]] | None:
        try:
            with safe_open(self._folder / name, "pt", device=str(device)) as file:
                about = file.metadata() or {}
                if about.get("key") != self._key:
                    return None
                return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None


def remove(folder: Path) -> None:
    """Remove what was kept: the collection is stored."""
    shutil.rmtree(folder, ignore_errors=True)
