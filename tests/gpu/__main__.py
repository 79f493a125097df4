"""Run the steps in a process of their own, and write down what becomes of each.

The process is replaced when it dies, and ended when a step takes too long: neither a crash nor
a kernel that hangs costs the other steps. What is left when the time is up is named.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.record import ROOT, Record
from tests.gpu.steps import STEPS, Step

# For the first import of everything, from files that were never read before.
START_SECONDS = 120.0


class Worker:
    """The process that takes the steps, one after the other."""

    def __init__(self, steps: list[Step], options: argparse.Namespace, folder: str) -> None:
        self._read, write = os.pipe()
        told = {
            "steps": [(step.name, step.function) for step in steps],
            "device": options.device,
            "size": options.size,
            "folder": folder,
            "events": write,
        }
        command = [sys.executable, "-m", "tests.gpu.work", json.dumps(told)]
        known = [str(ROOT), str(ROOT / "storage"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            pass_fds=[write],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, known))},
        )
        os.close(write)
        self._rest = b""

    def events(self) -> Iterator[dict[str, Any] | None]:
        """Yield what it tells, and None about every second in which it tells nothing."""
        while True:
            if not select.select([self._read], [], [], 1.0)[0]:
                yield None
                continue
            more = os.read(self._read, 1 << 16)
            if not more:
                return
            *lines, self._rest = (self._rest + more).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def end(self, *, now: bool) -> str:
        """End it and what it started; say how it had ended by itself.

        Args:
            now: do not wait for that.
        """
        try:
            code: int | None = self._process.wait(timeout=0 if now else 10)
        except subprocess.TimeoutExpired:
            code = None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them are gone
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        if code is None:
            return "it did not end"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def say(text: str) -> None:
    print(text, flush=True)


class Run:
    """Has the steps taken, until they or the time are at their end."""

    def __init__(self, steps: list[Step], options: argparse.Namespace, record: Record) -> None:
        self._left = list(steps)
        self._options = options
        self._record = record
        self._at = ""
        self._since = 0.0

    def all(self, folder: str) -> None:
        """Take the steps, with a fresh process after each that ends one."""
        while self._left and not self._over:
            before = len(self._left)
            self._at, self._since = "", self._record.seconds
            worker = Worker(self._left, self._options, folder)
            ended_by_us = True
            try:
                ended_by_us = not self._listen(worker)
            finally:
                manner = worker.end(now=ended_by_us)
            if self._at:
                self._broken_off(manner, ended_by_us)
            elif len(self._left) == before:
                say(f"no step could be begun: {manner}")
                return

    @property
    def _over(self) -> bool:
        return self._record.seconds > 60 * self._options.minutes

    def _listen(self, worker: Worker) -> bool:
        """Write down what it tells; return whether it came to its end by itself."""
        for event in worker.events():
            if event is not None:
                self._heard(event)
            limit = next((s.seconds for s in self._left if s.name == self._at), START_SECONDS)
            if self._over or self._record.seconds > self._since + limit:
                return False
        return True

    def _heard(self, event: dict[str, Any]) -> None:
        if "machine" in event:
            self._record.machine(event["machine"])
            self._say(json.dumps(event["machine"]))
        elif "begin" in event:
            self._at, self._since = event["begin"], self._record.seconds
            self._say(f"{self._at} ...")
        elif "tell" in event:
            self._say(f"    {event['tell']}")
        else:
            self._done(event.pop("end"), **event)

    def _done(self, name: str, **facts: Any) -> None:
        seconds = round(self._record.seconds - self._since, 1)
        self._record.step(name, seconds=seconds, **facts)
        self._say(f"{facts['status']}: {name} {facts['error']}")
        self._left = [step for step in self._left if step.name != name]
        self._at, self._since = "", self._record.seconds

    def _broken_off(self, manner: str, ended_by_us: bool) -> None:
        if not ended_by_us:
            status, error = "died", manner
        elif self._over:
            status, error = "not reached", "begun, but the time of the whole run was up"
        else:
            status, error = "too slow", "ended by its time limit"
        self._done(self._at, status=status, error=error)

    def _say(self, text: str) -> None:
        say(f"[{self._record.seconds:5.0f} s] {text}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda:0, cpu, ...")
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--out", type=Path, help="default: docs/measurements/gpu-<device>.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", default="", help="steps whose name has this in it")
    options = parser.parse_args()
    if options.size == "tiny" and options.out is None:
        options.out = ROOT / "build" / "gpu-check.json"
    steps = [step for step in STEPS if options.only in step.name]
    named = [(step.name, step.kind) for step in steps]
    record = Record(options.out, named, size=options.size, minutes=options.minutes)
    record.save()
    with tempfile.TemporaryDirectory(prefix="rin-gpu-check-") as folder:
        try:
            Run(steps, options, record).all(folder)
        finally:
            record.save()
    say(record.table())
    say(f"{len(steps) - len(record.bad)} of {len(steps)} steps passed or were not for this machine")
    if record.path is not None:
        say(f"written to {record.path}")
    return 1 if record.bad else 0


if __name__ == "__main__":
    sys.exit(main())
