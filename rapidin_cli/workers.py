"""Gradient work over devices: one process per device, each with its own model.

The parent hands out batches and gets encoded rows back over one pipe per worker. A pipe
ends when the parent dies, however it dies, and then the worker ends too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rapidin_cli.checkpoints import Checkpoint, load_model
from rapidin_cli.errors import RinError, UsageError, no_memory, out_of_memory
from rapidin_cli.gradients.spec import GradientSpec

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from rapidin_cli.gradients.capture import Skipped
    from rapidin_cli.gradients.engine import GradientEngine
    from rapidin_cli.gradients.passes import Batch
    from rapidin_cli.gradients.rows import RowLayout

LOCAL, RAY = "local", "ray"

_CUDA = re.compile(r"cuda(:\d+)?")

MAX_DEATHS = 3
"""Workers that may die on a batch before it is given up."""

Serve = Callable[["Job", "Connection"], None]
Arrays = dict[str, np.ndarray[Any, Any]]
Tokens = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""input_ids and labels of a padded batch, (B, T) each."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to build its engine.

    Attributes:
        checkpoint: what to load.
        spec: what to compute.
        device: `cpu` or `cuda:N`.
        threads: intra-op threads; 0 leaves torch's default.
        dtype: `auto`, `float32` or `bfloat16`.
    """

    checkpoint: Checkpoint
    spec: GradientSpec
    device: str
    threads: int
    dtype: str


class WorkerError(RinError):
    """A worker failed in a way that trying again will not mend."""


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
                f"{requested!r} is no device", hint="give auto, cpu or a list such as cuda:0,cuda:1"
            )
    return names


def choose_devices(requested: str, cpu_workers: int) -> list[tuple[str, int]]:
    """Return (device, threads) for each worker.

    Args:
        requested: `auto`, or a comma-separated list such as `cuda:0,cuda:1` or `cpu`.
        cpu_workers: processes when the device is the CPU; the cores are divided.

    Raises:
        UsageError: what is no device. RinError: a device that is not there.
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
                hint="give cpu, or leave the option out",
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


def build_engine(job: Job) -> GradientEngine:
    """Load the model and make the engine."""
    import torch

    from rapidin_cli.gradients.engine import GradientEngine

    if job.threads:
        torch.set_num_threads(job.threads)
    compute: Any = compute_dtype(job.dtype, job.device)
    model = load_model(job.checkpoint, job.device, float32=compute == "float32")
    return GradientEngine(model, job.spec, torch.device(job.device), compute)


class Worker:
    """An engine with the row encoding, and batches no larger than memory.

    Attributes:
        token_bytes: memory of each padded token of a batch.
        limit: padded tokens that a batch may have.
    """

    def __init__(self, job: Job) -> None:
        from rapidin_cli.gradients.memory import batch_limit, token_bytes
        from rapidin_cli.gradients.rows import row_kind

        self.engine = build_engine(job)
        self._kind = row_kind(self.engine.layout)
        self.token_bytes = token_bytes(self.engine.passes)
        self.limit = batch_limit(self.engine.passes.device, self.token_bytes)

    def rows(self, tokens: Tokens) -> Arrays:
        """Return the store arrays of a batch.

        It is cut into parts that memory is meant to hold, and those that it does not hold
        after all are halved.
        """
        count, length = tokens[0].shape
        most = max(1, self.limit // length)
        parts = [
            self._rows((tokens[0][first : first + most], tokens[1][first : first + most]))
            for first in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _rows(self, tokens: Tokens) -> Arrays:
        import torch

        from rapidin_cli.gradients.passes import Batch

        try:
            batch: Batch = Batch(torch.from_numpy(tokens[0]), torch.from_numpy(tokens[1]))
            return self._kind.encode(self.engine(batch))
        except (MemoryError, RuntimeError) as error:
            half = len(tokens[0]) // 2
            if not half or not out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        first = self._rows((tokens[0][:half], tokens[1][:half]))
        second = self._rows((tokens[0][half:], tokens[1][half:]))
        return {name: np.concatenate([first[name], second[name]]) for name in first}


@dataclass(frozen=True)
class Ready:
    """What a pool knows once a model is loaded."""

    layout: RowLayout
    skipped: list[Skipped]


@dataclass(frozen=True)
class Poison:
    """Stands for the rows of a batch on which three workers died, and says how."""

    manner: str


class InlinePool:
    """One device: the work is done in this process."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)
        engine = self._worker.engine
        self.ready = Ready(engine.layout, engine.skipped)

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays]]:
        """Yield (batch number, device, rows) as batches are done."""
        for number, tokens in enumerate(batches):
            yield number, "", self._worker.rows(tokens)

    def close(self) -> None:
        """Nothing to end."""


class ProcessPool:
    """Several devices, or several processes on a CPU."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._members = [Member(job, serve_rows) for job in jobs]
        try:
            self.ready = self._members[0].wait_ready()
        except BaseException:
            self.close()
            raise

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, device, rows) as batches are done, in any order.

        A dead worker is replaced and its batch handed out again; a batch that killed
        three is yielded as `Poison`.

        Raises:
            WorkerError: a worker reported an error.
        """
        from multiprocessing.connection import wait

        waiting = deque(range(len(batches)))
        deaths: Counter[int] = Counter()
        left = len(batches)
        while left:
            for member in self._members:
                # One at a time, and not before it listens: else parent and worker could
                # each wait for the other to empty a full pipe.
                if waiting and member.loaded and not member.busy:
                    member.send(waiting.popleft(), batches)
            ready = wait([member.connection for member in self._members])
            for position, member in enumerate(self._members):
                if member.connection not in ready:
                    continue
                try:
                    message = member.connection.recv()
                except (EOFError, OSError):
                    lost, manner = member.busy, member.buried()
                    self._members[position] = Member(member.job, serve_rows)
                    for number in lost:
                        deaths[number] += 1
                        if deaths[number] < MAX_DEATHS:
                            waiting.appendleft(number)
                        else:
                            left -= 1
                            yield number, member.job.device, Poison(manner)
                    continue
                match message:
                    case Ready():
                        member.loaded = True
                    case (int(number), dict(rows)):
                        member.busy.remove(number)
                        left -= 1
                        yield number, member.job.device, rows
                    case RinError() as error:
                        raise error

    def close(self) -> None:
        """End all workers."""
        for member in self._members:
            member.stop()


class Member:
    """The parent's side of one worker process.

    Args:
        job: the worker's.
        serve: what it does with its engine and the other end of the pipe; `serve_rows`.
    """

    def __init__(self, job: Job, serve: Serve) -> None:
        import torch.multiprocessing as mp

        self.job = job
        self.busy: list[int] = []
        self.loaded = False
        context = mp.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(job, theirs, serve), daemon=True, name=f"rin-{job.device}"
        )
        self.process.start()
        theirs.close()

    def wait_ready(self) -> Ready:
        """Return what it says once its model is loaded."""
        try:
            message = self.connection.recv()
        except EOFError:
            raise self._died_loading() from None
        if isinstance(message, RinError):
            raise message
        assert isinstance(message, Ready)
        self.loaded = True
        return message

    def _died_loading(self) -> WorkerError:
        self.process.join()
        return WorkerError(
            f"the worker on {self.job.device} died while it loaded the model "
            f"({_manner(self.process.exitcode)})",
            hint="try a single one: --workers 1",
        )

    def send(self, number: int, batches: Sequence[Tokens]) -> None:
        """Hand out a batch."""
        self.busy.append(number)
        with contextlib.suppress(OSError):
            # If it is dead, the next `wait` finds that out and puts the batch back.
            self.connection.send((number, batches[number]))

    def buried(self) -> str:
        """Close what a dead worker leaves and say how it died."""
        if not self.loaded:
            raise self._died_loading()
        self.process.join()
        self.connection.close()
        return _manner(self.process.exitcode)

    def stop(self) -> None:
        """End it."""
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _manner(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by signal {-exitcode}" + (
            ", perhaps out of memory" if exitcode == -9 else ""
        )
    return f"exit code {exitcode}"


def serve_rows(job: Job, connection: Connection) -> None:
    """Load, then answer batches until the pipe ends."""
    worker = Worker(job)
    connection.send(Ready(worker.engine.layout, worker.engine.skipped))
    while True:
        number, tokens = connection.recv()
        connection.send((number, worker.rows(tokens)))


def _serve(job: Job, connection: Connection, serve: Serve) -> None:
    """Run in the worker until it has nothing more to do, or the pipe ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        serve(job, connection)
    except (EOFError, BrokenPipeError):
        return
    except RinError as error:
        connection.send(error)
    except Exception as error:  # whatever it is, the parent must hear of it
        if out_of_memory(error):
            connection.send(no_memory(error))
            return
        detail = traceback.format_exc()
        connection.send(
            WorkerError(
                f"the worker on {job.device} failed: {type(error).__name__}: {error}",
                hint=f"report this with the following\n{detail}",
            )
        )


class Pool(Protocol):
    """Whoever computes rows."""

    ready: Ready

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, where, rows) as batches are done."""

    def close(self) -> None:
        """End what was started."""


def check_executor(executor: str, devices: str = "auto") -> None:
    """Refuse what cannot be had, before anything else is done.

    Raises:
        UsageError: there is no such executor, it is not installed, or takes no devices; or
            what is no device.
    """
    check_devices(devices)
    if executor not in (LOCAL, RAY):
        raise UsageError(f"there is no executor {executor!r}", hint=f"choose {LOCAL} or {RAY}")
    if executor == RAY and devices != "auto":
        raise UsageError(
            "--devices are this machine's, and --executor ray works on a cluster's",
            hint="leave --devices out; --workers N makes N workers",
        )
    if executor == RAY and importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", hint='pip install "rapidin[ray]"')


def open_pool(jobs: Sequence[Job], executor: str = LOCAL) -> Pool:
    """Start the workers and wait until the first has loaded its model.

    Args:
        jobs: of each worker.
        executor: `local` processes, or `ray` actors.
    """
    if executor == RAY:
        from rapidin_cli.ray_pool import RayPool

        return RayPool(jobs)
    return InlinePool(jobs[0]) if len(jobs) == 1 else ProcessPool(jobs)
