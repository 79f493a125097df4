"""A batch that takes long is computed, shown and committed in parts."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rapidin_cli import Project
from rapidin_cli.work import caching
from rapidin_cli.work.caching import CachingProgress, cache_rows, make_plan
from rapidin_cli.work.worker import _TRIED_ROWS, PART_SECONDS, Worker
from tests.support import tiny

COUNT = 40

# The command on a slow machine: each row takes a while, in whatever process.
SLOW = """
import os, signal, time
from pathlib import Path
import rapidin_cli.work.worker as worker

worker.PART_SECONDS = 0.3
plain = worker.Worker._rows

def slowly(self, tokens):
    time.sleep(0.05 * len(tokens[0]))
    done = plain(self, tokens)
    with open("parts.log", "a") as log:
        log.write(f"{os.getpid()} {len(tokens[0])}\\n")
    return done

worker.Worker._rows = slowly
if __name__ == "__main__":
    import rapidin_cli.commands.main
    rapidin_cli.commands.main.main()
"""


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """All rows of the project below, each computed in a whole batch."""
    folder = project(tmp_path_factory.mktemp("calm"))
    Project.open(folder).cache()
    return values(folder)


def project(folder, **settings):
    settings = {"batch_tokens": 4096, "commit_seconds": 0.2, "precision": "float16", **settings}
    return tiny.project(folder / "project", COUNT, adapter=False, **settings)


def values(folder):
    snapshot = Project.open(folder).opened().cache.snapshot()
    arrays = snapshot.read(0, snapshot.commit.slots, ["sketch", "norm", "loss", "tokens"])
    return {d: [array[slot] for array in arrays.values()] for d, slot in snapshot.index.items()}


def same(found, expected):
    assert set(found) == set(expected)
    for digest, row in expected.items():
        for ours, theirs in zip(found[digest], row, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


def start(folder, *options):
    script = folder / "slow.py"
    script.write_text(SLOW)
    return subprocess.Popen(
        [sys.executable, script, "cache", *options],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def cached(folder):
    if not list((folder / ".rin/caches").glob("*/log/*.json")):
        return 0
    return Project.open(folder).opened().cache.snapshot().commit.rows


def until(process, happened):
    end = time.monotonic() + 100
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_kill_within_a_batch_costs_only_what_was_not_committed(tmp_path, calm):
    folder = project(tmp_path)
    process = start(folder)
    until(process, lambda: cached(folder))
    process.kill()
    process.communicate()
    before = cached(folder)
    assert 0 < before < COUNT
    sizes = [int(line.split()[1]) for line in (folder / "parts.log").read_text().splitlines()]
    assert max(sizes) <= 8, "of a second by half"
    process = start(folder)
    talk = process.communicate(timeout=120)[1]
    assert f"{COUNT - before} rows to compute" in talk
    same(values(folder), calm)


def test_a_worker_killed_within_a_batch_leaves_its_parts(tmp_path, calm):
    folder = project(tmp_path, batch_tokens=500)
    log = folder / "parts.log"
    process = start(folder, "--workers", "2")

    def working():
        """The processes that have done a part, after the trial."""
        lines = log.read_text().splitlines() if log.exists() else []
        done = Counter(int(line.split()[0]) for line in lines)
        return [number for number, parts in done.items() if parts > len(_TRIED_ROWS)]

    until(process, working)
    os.kill(working()[0], signal.SIGKILL)
    talk = process.communicate(timeout=120)[1]
    assert process.returncode == 0, talk
    assert f"{COUNT} rows computed, {COUNT} cached" in talk
    same(values(folder), calm)


def test_what_waits_too_long_is_committed_out_of_turn(tmp_path, monkeypatch):
    folder = project(tmp_path, batch_tokens=200)
    opened = Project.open(folder).opened()
    settings = caching.Settings(200, 0.0)
    plan = make_plan(opened.dataset, None, settings)
    job = opened.jobs("cpu", 1)[0]
    worker = Worker(job)
    found: list[tuple[int, list[int]]] = []

    class Pool:
        """The second batch is done first, in two parts."""

        ready = worker.ready

        def run(self, batches):
            first, second, *rest = range(len(batches))
            rows = {number: worker.rows(batches[number]) for number in (first, second, *rest)}
            yield second, "", {name: array[:2] for name, array in rows[second].items()}
            yield second, "", {name: array[2:] for name, array in rows[second].items()}
            time.sleep(0.2)
            for number in (*rest, first):
                yield number, "", rows[number]

        def close(self):
            pass

    class Watch(CachingProgress):
        def committed(self, snapshot):
            numbers = {e.digest: n for n, batch in enumerate(plan.batches) for e in batch}
            found.append((len(plan.batches), sorted({numbers[d] for d in snapshot.index})))

    monkeypatch.setattr(caching, "open_pool", lambda *_: Pool())
    for seconds, wanted in ((100.0, None), (0.1, [1, 2])):
        found.clear()
        monkeypatch.setattr(caching, "_ORDERED_SECONDS", seconds)
        root = Path(tmp_path / f"store{seconds}")
        cache = Project.open(folder, f"{root}").opened().cache
        cache_rows(cache, plan, [job], settings, opened.identity, {}, Watch())
        count = len(plan.batches)
        assert found[-1][1] == list(range(count))
        assert found[0][1] == (wanted or list(range(count)))


def test_parts_follow_what_rows_take(tmp_path):
    folder = project(tmp_path)
    opened = Project.open(folder).opened()
    worker = Worker(opened.jobs("cpu", 1)[0])
    assert 0 < worker.token_seconds < 0.1, "known before the first batch"
    assert worker.rows_at_once(32) * 32 <= worker.limit
    worker.token_seconds = 0.5
    assert worker.rows_at_once(4) == PART_SECONDS // 2
    assert worker.rows_at_once(4096) == 1
    [batch] = make_plan(opened.dataset, None, caching.Settings(4096, 1)).batches
    tokens = caching.padded(batch)
    parts = [len(part["loss"]) for part in worker.parts(tokens)]
    assert parts[0] == 1, "as slow as it was said to be"
    assert sum(parts) == COUNT
    assert len(parts) <= 3, "and it was faster"
