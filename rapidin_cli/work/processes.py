"""One process per device, each with its own model.

The parent hands out batches and gets encoded rows back over one pipe per worker. A pipe
ends when the parent dies, however it dies, and then the worker ends too.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rapidin_cli.errors import RinError, no_memory, out_of_memory
from rapidin_cli.work.worker import (
    MAX_DEATHS,
    Arrays,
    Job,
    Poison,
    Ready,
    Tokens,
    Worker,
    WorkerError,
    after,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess


Serve = Callable[["Job", "Connection"], None]


class ProcessPool:
    """Several devices, or several processes on a CPU."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._members = [Member(job, serve_rows) for job in jobs]
        try:
            first = self._members[0].wait_ready()
            self.ready = replace(first, token_seconds=first.token_seconds / len(jobs))
        except BaseException:
            self.close()
            raise

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays | Poison]]:
        """Yield (batch number, device, rows) as parts of batches are done; see `Pool`.

        A dead worker is replaced, and what it had not done of its batch handed out again; a
        batch on which three have died, without a part between, is yielded as `Poison`.

        Raises:
            WorkerError: a worker reported an error.
        """
        from multiprocessing.connection import wait

        waiting = deque(range(len(batches)))
        deaths: Counter[int] = Counter()
        done: Counter[int] = Counter()  # rows of each batch
        left = len(batches)
        while left:
            for member in self._members:
                # One at a time, and not before it listens: else parent and worker could
                # each wait for the other to empty a full pipe.
                if waiting and member.loaded and member.busy is None:
                    number = waiting.popleft()
                    member.send(number, after(batches[number], done[number]))
            ready = wait([member.connection for member in self._members])
            for position, member in enumerate(self._members):
                if member.connection not in ready:
                    continue
                try:
                    message = member.connection.recv()
                except (EOFError, OSError):
                    lost, manner = member.busy, member.buried()
                    self._members[position] = Member(member.job, serve_rows)
                    if lost is None:
                        continue
                    deaths[lost] += 1
                    if deaths[lost] < MAX_DEATHS:
                        waiting.appendleft(lost)
                    else:
                        left -= 1
                        yield lost, member.job.device, Poison(manner)
                    continue
                match message:
                    case Ready():
                        member.loaded = True
                    case (int(number), dict(rows)):
                        del deaths[number]
                        done[number] += len(rows["loss"])
                        left -= member.received(len(rows["loss"]))
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
        self.busy: int | None = None
        self._awaited = 0
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
        """Return its first message, sent once its model is loaded."""
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
            f"the worker on {self.job.device} died while loading the model "
            f"({_manner(self.process.exitcode)})",
            hint="try a single worker: --workers 1",
        )

    def send(self, number: int, tokens: Tokens) -> None:
        """Hand out a batch, or the rest of one."""
        self.busy, self._awaited = number, len(tokens[0])
        with contextlib.suppress(OSError):
            # If it is dead, the next `wait` finds that out and puts the batch back.
            self.connection.send((number, tokens))

    def received(self, rows: int) -> bool:
        """Count rows of its batch; return whether they were the last."""
        self._awaited -= rows
        if not self._awaited:
            self.busy = None
        return not self._awaited

    def buried(self) -> str:
        """Clean up after a dead worker and say how it died."""
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
    connection.send(worker.ready)
    while True:
        number, tokens = connection.recv()
        for rows in worker.parts(tokens):
            connection.send((number, rows))


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
                hint=f"report this, with the following:\n{detail}",
            )
        )
