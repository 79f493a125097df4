"""`rin doctor`: checks of the environment, the project and its store."""

from __future__ import annotations

import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapidin_cli import __version__
from rapidin_cli.errors import NoProjectError, RinError
from rapidin_cli.project import Project
from rapidin_cli.workers import compute_dtype, cores
from rapidin_storage import Root, StorageError

_RACERS = 4
_LOW_DISK = 2**30


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    finding: str
    next: str = ""

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        return f"{mark} {self.name}: {self.finding}" + (f"  ->  {self.next}" if self.next else "")

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def examine(start: Path) -> list[Check]:
    """Run all checks; none raises."""
    checks = [*_environment()]
    try:
        project = Project.open(start)
    except NoProjectError as error:
        return [*checks, Check("project", True, f"{error.message}; not needed here")]
    except RinError as error:
        return [*checks, Check("project", False, error.message, error.hint)]
    checks.append(Check("project", True, str(project.root)))
    for settings in project.config.checkpoints:
        checks.append(
            _try(
                f"checkpoint {settings.name}",
                lambda name=settings.name: _checkpoint(project, name),  # type: ignore[misc]
            )
        )
    if not project.config.checkpoints:
        checks.append(Check("checkpoints", False, "rin.toml names none", "add [[checkpoints]]"))
    checks.append(_try("store", lambda: _store(project.store)))
    if "://" not in project.config.storage.root:
        checks.append(_disk(project.root))
    return checks


def _environment() -> Iterator[Check]:
    import numpy
    import peft
    import torch
    import transformers
    import zarr

    yield Check("rin", True, f"{__version__}, Python {platform.python_version()}")
    yield Check(
        "libraries",
        True,
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}, zarr {zarr.__version__}, numpy {numpy.__version__}",
    )
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(count))
    device = "cuda:0" if count else "cpu"
    yield Check(
        "devices",
        True,
        f"{names or f'no GPU, {cores()} CPU cores'}; gradients in {compute_dtype('auto', device)}",
    )


def _try(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except RinError as error:
        return Check(name, False, error.message, error.hint)
    except (StorageError, OSError) as error:
        return Check(name, False, str(error), "correct [storage] root in rin.toml")


def _checkpoint(project: Project, name: str) -> str:
    opened = project.opened(name)
    kind = "adapter" if opened.checkpoint.base else "full model"
    return f"{kind} in {opened.checkpoint.path}, fingerprint {opened.fingerprint[:12]}"


def _store(root: Root) -> str:
    """Write, read back and race for a file: what the safety of commits rests on."""
    root.check_format(create=True)
    name = f"probe-{uuid.uuid4().hex}"
    with ThreadPoolExecutor(_RACERS) as pool:
        bodies = [f"writer {number}".encode() for number in range(_RACERS)]
        won = list(pool.map(lambda body: root.create(name, body), bodies))
    held = root.read(name)
    root.remove(name)
    if sum(won) != 1 or held != bodies[won.index(True)]:
        raise StorageError(
            f"{root.url} let {sum(won)} of {_RACERS} racing writers create one file: commits by "
            "several writers at once would be lost"
        )
    return f"{root.url}: readable, writable, creates a file for one of {_RACERS} racing writers"


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    finding = f"{free / 2**30:,.1f} GiB free in {root}"
    if free < _LOW_DISK:
        return Check("disk", False, finding, "free some space before rin cache")
    if not os.access(root, os.W_OK):
        return Check("disk", False, f"{root} is not writable", "change its permissions")
    return Check("disk", True, finding)
