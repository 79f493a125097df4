"""Directions in whole numbers, for products with stored bytes by a CPU's integer instructions.

A direction becomes a sum of planes of 7 bits, each 126 times finer than the one before: as many
of them as leave an error that vanishes beside that of the stored rows. Products of bytes are
exact, and several times faster than those of floats that bytes would have to be turned into.
"""

from collections.abc import Sequence
from functools import cache

import torch

# A plane's largest number. Older CPUs add two products of bytes in 16 bits: 2 * 255 * 63 fits.
MOST = 63
# So many products with bytes fit 32 bits.
COLUMNS = 2**17
# The most that a direction's error may be, relative to it: int8 rows are off by a hundredth. Two
# planes leave half of that of numbers that are nearly normal.
_ERROR = 3e-4
# Three are as exact as float32.
_PLANES = 3


@cache
def multiplies_bytes() -> bool:
    """Whether this CPU multiplies matrices of bytes exactly.

    Only where it was measured to be faster than floats, too: on x86 (tests/benchmarks/scan.py).
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    try:
        for columns in (1, 16):
            left = torch.full((32, 256), -128, dtype=torch.int8)
            right = torch.full((256, columns), MOST, dtype=torch.int8)
            if not (torch._int_mm(left, right) == -128 * MOST * 256).all():
                return False
    except (AttributeError, RuntimeError):
        return False
    return True


def plane_count(directions: torch.Tensor, segments: Sequence[slice]) -> int:
    """How many planes directions (Q, W) need in every one of the segments that have own steps."""
    ratio = 0.0
    for segment in segments:
        part = directions[:, segment]
        # As for a normal distribution: a few large numbers must not cost the others.
        deviation = 1.25 * part.abs().mean(1).clamp_min(1e-30)
        ratio = max(ratio, float((part.abs().amax(1) / MOST / 12**0.5 / deviation).max()))
    planes = 1
    while ratio > _ERROR and planes < _PLANES:
        ratio /= 2 * MOST
        planes += 1
    return planes


def planes_of(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write vectors as sums of planes: values = sum over p of steps[p, :, None] * planes[p].

    Args:
        values: (Q, m) float32.

    Returns:
        planes (P, Q, m) int8 and steps (P, Q) float32.
    """
    step = values.abs().amax(1).clamp_min(1e-30) / MOST
    planes, steps = [], []
    rest = values
    for _ in range(count):
        plane = (rest / step[:, None]).round_().clamp_(-MOST, MOST)
        rest = rest - plane * step[:, None]
        planes.append(plane.to(torch.int8))
        steps.append(step)
        step = step / (2 * MOST)
    return torch.stack(planes), torch.stack(steps)
