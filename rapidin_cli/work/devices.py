"""Devices: which exist, which were asked for, and in which precision they compute."""

import os
import re

from rapidin_cli.errors import RinError, UsageError

_CUDA = re.compile(r"cuda(:\d+)?")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_devices(requested: str) -> list[str]:
    """Return the devices that a list names, before anything is loaded.

    Raises:
        UsageError: it is not `auto`, `cpu` or a list of CUDA devices.
    """
    names = [name.strip() for name in requested.split(",") if name.strip()] or ["auto"]
    for name in names:
        alone = name in ("auto", "cpu") and len(names) == 1
        if not alone and not _CUDA.fullmatch(name):
            raise UsageError(
                f"{requested!r} is not a device", hint="use auto, cpu or a list like cuda:0,cuda:1"
            )
    return names


def choose_devices(requested: str, cpu_workers: int) -> list[tuple[str, int]]:
    """Return (device, threads) for each worker.

    Args:
        requested: `auto`, or a comma-separated list such as `cuda:0,cuda:1` or `cpu`.
        cpu_workers: processes when the device is the CPU; the cores are divided.

    Raises:
        UsageError: not a device. RinError: a device that this machine does not have.
    """
    import torch

    names = check_devices(requested)
    if names == ["auto"]:
        names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
    if names == ["cpu"]:
        # A single worker keeps what torch and OMP_NUM_THREADS say.
        threads = max(1, cores() // cpu_workers) if cpu_workers > 1 else 0
        return [("cpu", threads)] * cpu_workers
    for name in names:
        if (torch.device(name).index or 0) >= torch.cuda.device_count():
            raise RinError(
                f"there is no device {name!r} ({torch.cuda.device_count()} CUDA devices found)",
                hint="use cpu, or omit the option",
            )
    return [(name, 0) for name in names]


def compute_dtype(requested: str, device: str) -> str:
    """Return `bfloat16` or `float32`: what `auto` means on that device."""
    import torch

    if requested != "auto":
        return requested
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if native is not None and native() else "float32"
