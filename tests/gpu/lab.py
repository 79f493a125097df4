"""What the steps work with: the device, small models on both sides, and their findings."""

import gc
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.rows import Row
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence.queries import Query
from rapidin_cli.models.loading import quiet_loading
from tests.support import tiny

CPU = torch.device("cpu")
KINDS = "lora", "all weights"
EXACT = GradientSpec(dimensions=2**23)
"""More than any of the small models has: nothing is hashed."""


class NotHereError(Exception):
    """A step that this machine is not for."""


class Lab:
    """One device, and what was found of a step so far.

    Attributes:
        device: it. size: `tiny`, to try the steps, or `real`.
        folder: room for files, shared with a process that takes over.
        figures: of the step at hand. failures: in words.
    """

    def __init__(self, device: str, size: str, folder: str, tell: Callable[[str], None]) -> None:
        self.device = _find(device)
        self.small = size == "tiny"
        self.folder = Path(folder)
        self.tell = tell
        self.begin()
        self._module: Any = torch.get_device_module(self.device)
        with quiet_loading():  # what peft and transformers say once is said now
            self.model("lora")

    def begin(self) -> None:
        """Forget the last step."""
        self.figures: dict[str, Any] = {}
        self.failures: list[str] = []

    def settle(self) -> bool:
        """Give memory back after a step; say whether the device still answers."""
        gc.collect()
        try:
            self.wait()
            if self.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)
                torch.cuda.empty_cache()
        except RuntimeError as error:
            self.tell(f"the device answers no more: {str(error).splitlines()[0]}")
            return False
        return True

    def machine(self) -> dict[str, Any]:
        """Say where this is."""
        facts: dict[str, Any] = {
            "device": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "float32 products": torch.get_float32_matmul_precision(),
        }
        packages = "transformers", "peft", "accelerate", "numpy", "zarr"
        facts |= {name: version(name) for name in packages}
        if self.device.type == "cuda":
            about = torch.cuda.get_device_properties(self.device)
            facts["device"] = about.name
            facts["memory"] = about.total_memory
            facts["capability"] = f"{about.major}.{about.minor}"
            facts["devices"] = torch.cuda.device_count()
        elif self.device.type != "cpu":
            facts["device"] = str(self.device)
        return facts

    @property
    def memory(self) -> int:
        """Bytes of the device; 0 where they are not known."""
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    # Findings.

    def near(self, name: str, found: Any, at_most: float) -> None:
        """Note a deviation, which fails the step if it is larger, or no number."""
        value = float(found)
        self.figures[name] = {"found": value, "at_most": at_most}
        if not value <= at_most:
            self.failures.append(f"{name}: {value:.3g} is more than {at_most:.3g}")

    def true(self, name: str, found: bool) -> None:
        """Note what has to be so."""
        self.figures[name] = bool(found)
        if not found:
            self.failures.append(f"{name}: no")

    def note(self, name: str, value: Any) -> None:
        """Note a figure, to four digits."""
        self.figures[name] = _rounded(value)

    # Time and memory.

    def wait(self) -> None:
        """Wait for the device."""
        if hasattr(self._module, "synchronize"):
            self._module.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long some work takes, the device's part included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak(self, work: Callable[[], Any]) -> int:
        """Return the bytes that some work took on the device beyond what was taken; 0 on a CPU."""
        if self.device.type != "cuda":
            work()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return int(torch.cuda.max_memory_allocated(self.device) - before)

    # Models and examples.

    def model(self, kind: str) -> Any:
        """A small model on the CPU, the same each time."""
        shape = {} if self.small else {"hidden_size": 256, "intermediate_size": 688}
        if kind == "gpt2":
            return tiny.gpt2()
        made = tiny.llama(**shape, num_hidden_layers=2 if self.small else 4)
        return tiny.lora(made) if kind == "lora" else made

    def engine(
        self, kind: str, spec: GradientSpec, device: torch.device, compute: Any = "float32"
    ) -> GradientEngine:
        """An engine for a small model."""
        return GradientEngine(self.model(kind).to(device), spec, device, compute)

    @property
    def examples(self) -> list[Example]:
        """Rows of different lengths."""
        lengths = [9, 30, 6, 14, 11] if self.small else [40, 140, 25, 96, 64, 11, 77]
        return [example(n, length) for n, length in enumerate(lengths)]

    @property
    def query(self) -> Query:
        """What is asked."""
        return Query("q", "given", example(50, 10 if self.small else 20, 4))


def example(seed: int, length: int, prompt: int = 3, vocabulary: int = 400) -> Example:
    """Random tokens, the same on every machine."""
    ids = np.random.default_rng(seed).integers(1, vocabulary, length).astype("int32")
    labels = ids.copy()
    labels[:prompt] = IGNORED
    return Example(Row("", seed, str(seed), "", ""), ids, labels)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest relative distance of two rows, (B, K) each; NaN stays NaN."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    size = torch.linalg.vector_norm(theirs, dim=-1).clamp_min(1e-30)
    return float((torch.linalg.vector_norm(ours - theirs, dim=-1) / size).max())


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _find(name: str) -> torch.device:
    if name == "auto":
        if not torch.accelerator.is_available():
            raise SystemExit(
                "PyTorch sees no accelerator: --device cpu --size tiny tries the steps without one"
            )
        there: Any = torch.accelerator.current_accelerator()
        name = f"{there.type}:0"
    return torch.device(name)
