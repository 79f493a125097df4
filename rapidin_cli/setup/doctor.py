"""`rin doctor`: checks of the environment, the project and its store."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rapidin_cli.api import Project
from rapidin_cli.errors import NoProjectError, RinError
from rapidin_cli.output.sentences import translated
from rapidin_cli.output.version import __version__
from rapidin_cli.work.devices import compute_dtype, cores
from rapidin_storage import AccessError, FsspecRoot, NotFoundError, Root, StorageError
from rapidin_storage.roots import probe_path

_ROUND_TRIPS = 5
_PROBE_BYTES = 8 * 10**6
_MOST_SKEW = 300.0
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
        return [*checks, Check("project", True, f"{error.message}; none is needed here")]
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
        checks.append(Check("checkpoints", False, "rin.toml has none", "add [[checkpoints]]"))
    checks += probes("store", project.places.store)
    for name, root in project.places.remotes.items():
        if root.url != project.places.store.url:
            checks += probes(f"remote {name}", root)
    for name, why in project.places.unusable.items():
        checks.append(Check(f"remote {name}", False, why.message, why.hint))
    checks.append(_disk(project.root))
    return checks


def rendering(start: Path, checkpoint: str, device: str) -> list[Check]:
    """Ask a checkpoint whether the rows are rendered as its training rendered them.

    Raises:
        RinError: no project, or neither rows nor model can be read.
    """
    from rapidin_cli.evaluation.fit import examine_rendering, shortened

    found = examine_rendering(Project.open(start).opened(checkpoint), device)
    shown = [f"{shortened(fit.name)} {fit.loss:.3f}" for fit in found.fits]
    finding = f"mean nats a response token over {found.rows} rows: {', '.join(shown)}"
    checks = [Check("rows", True, finding)]
    if (words := found.words) is not None:
        finding = (
            f"{words.tokens} of the template's own cost {words.tuned:.2f} nats a token, and "
            f"{words.base:.2f} without the adapter"
        )
        checks.append(Check("tokens", True, finding))
    mend = "compare with your training script, then set [data] in rin.toml"
    return [*checks, *(Check("settings", False, each, mend) for each in found.complaints)]


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


def _try(name: str, check: Callable[[], str], mend: str = "rin --debug doctor") -> Check:
    try:
        return Check(name, True, check())
    except RinError as error:
        return Check(name, False, error.message, error.hint)
    except AccessError as error:
        return Check(name, False, str(error), translated(error)[0].hint)
    except (StorageError, OSError) as error:
        return Check(name, False, str(error), mend)
    except Exception as error:  # whatever a library raises here, the others are still checked
        return Check(name, False, f"{type(error).__name__}: {error}", "rin --debug doctor")


def _checkpoint(project: Project, name: str) -> str:
    opened = project.opened(name)
    kind = "adapter" if opened.checkpoint.base else "full model"
    return f"{kind} in {opened.checkpoint.path}, fingerprint {opened.fingerprint[:12]}"


def probes(name: str, root: Root) -> Iterator[Check]:
    """Probe a store for what commits, pushes and gc rely on. Leaves nothing behind."""
    reached = _try(name, lambda: _reach(root), "correct rin.toml, or check the network")
    yield reached
    if not reached.ok:
        return
    yield _try(
        f"{name}: concurrent writers",
        lambda: _race(root),
        "set [remote.NAME] single_writer = true if only one machine ever writes there, or use "
        "a service that honours If-None-Match",
    )
    yield _try(f"{name}: clock", lambda: _clock(root), "set this machine's clock (NTP)")
    if root.shared:
        yield _try(f"{name}: speed", lambda: _speed(root), "rin doctor again, on a quiet network")


def _reach(root: Root) -> str:
    times = []
    for _ in range(_ROUND_TRIPS):
        start = time.perf_counter()
        try:
            root.check_format()
            state = "a rin store"
        except NotFoundError:
            state = "no store yet"
        times.append(time.perf_counter() - start)
    source = root.credentials() if isinstance(root, FsspecRoot) else ""
    return f"{root.url}: {state}, round trip {1000 * median(times):.1f} ms" + (
        f", credentials from {source}" if source else ""
    )


def _race(root: Root) -> str:
    if getattr(root, "single_writer", False):
        return "only one, as set by [remote.NAME] single_writer"
    root.check_exclusive()
    return "exactly one of several racing writers wins: commits are safe"


def _clock(root: Root) -> str:
    skew = root.now() - time.time()
    if abs(skew) > _MOST_SKEW:
        raise StorageError(f"its clock is {skew:+,.0f} s off ours: gc and signatures rely on it")
    return f"{skew:+.1f} s off ours"


def _speed(root: Root) -> str:
    name, data = probe_path(), os.urandom(_PROBE_BYTES)
    start = time.perf_counter()
    root.write(name, data)
    try:
        written = time.perf_counter()
        back = root.read(name, len(data))
        end = time.perf_counter()
    finally:
        root.remove(name)
    if back != data:
        raise StorageError(f"{root.url} did not return the bytes that were written")
    rates = [len(data) / 1e6 / seconds for seconds in (written - start, end - written)]
    return f"one 8 MB object: {rates[0]:,.0f} MB/s up, {rates[1]:,.0f} MB/s down"


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    finding = f"{free / 2**30:,.1f} GiB free in {root}"
    if free < _LOW_DISK:
        return Check("disk", False, finding, "free some space before rin cache")
    if not os.access(root, os.W_OK):
        return Check("disk", False, f"{root} is not writable", "change its permissions")
    return Check("disk", True, finding)
