"""`rin cache` killed, interrupted, and robbed of its workers: nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rapidin_cli import Project
from tests.support import forked, tiny
from tests.support.forked import rin
from tests.support.projects import stored_rows

LONGEST = 32  # tokens of the longest rows of a tiny project


# More kills, at random instants, are in tests/benchmarks/crash.py.
@pytest.mark.parametrize(("workers", "instants"), [(1, (1, 6)), (2, (3,))])
def test_killed_at_any_moment_it_continues_to_the_same_rows(tmp_path, workers, instants):
    count = 150
    calm = tiny.project(tmp_path / "calm", count, adapter=False, batch_tokens=64)
    assert rin(calm, "cache", "--workers", workers).returncode == 0
    expected = stored_rows(calm)
    settings = {"adapter": False, "batch_tokens": 64, "commit_seconds": 0.001}
    folder = tiny.project(tmp_path / "killed", count, **settings)
    log = folder / ".rin/caches"
    kills = 0
    for wanted in instants:
        command = forked.start(folder, "cache", "--workers", workers)
        while command.process.is_alive() and len(list(log.glob("*/log/*.json"))) < wanted:
            time.sleep(0.002)
        command.process.kill()
        kills += command.ended().returncode == -signal.SIGKILL
        snapshot = Project.open(folder).opened().cache.snapshot()
        assert 0 < snapshot.commit.rows < count
        assert len(snapshot.read(0, snapshot.commit.slots, ["sketch"])["sketch"]) > 0
    assert kills == len(instants)
    done = rin(folder, "cache", "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert stored_rows(folder) == expected


def test_two_workers_make_the_same_cache(tmp_path, cached_project):
    folder = tiny.project(tmp_path / "two")
    done = rin(folder, "cache", "--workers", 2)
    assert done.returncode == 0, done.stderr
    # To rounding: other numbers of threads may add in another order.
    ours, theirs = (
        Project.open(place).opened().cache.snapshot() for place in (folder, cached_project)
    )
    assert set(ours.index) == set(theirs.index)
    for name, tolerance in (("norm", 1e-5), ("loss", 1e-5), ("sketch", 1)):
        order = [[snapshot.index[d] for d in sorted(ours.index)] for snapshot in (ours, theirs)]
        values = [
            snapshot.array(name)[:][slots].astype(float)
            for snapshot, slots in zip((ours, theirs), order, strict=True)
        ]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=tolerance)


def test_a_killed_worker_is_replaced(tmp_path):
    settings = {"adapter": False, "batch_tokens": 64, "commit_seconds": 0.2}
    folder = tiny.project(tmp_path / "project", 900, **settings)
    command = forked.start(folder, "cache", "--workers", 2)
    pid = command.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not list((folder / ".rin/caches").glob("*/log/*.json")) and command.process.is_alive():
        time.sleep(0.002)
    workers = [
        int(pid)
        for pid in children.read_text().split()
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(workers[0], signal.SIGKILL)
    done = command.ended()
    assert done.returncode == 0, done.stderr
    assert "900 rows computed" in done.stderr
    assert len(stored_rows(folder)) == 900


def test_a_batch_that_kills_every_worker_is_named_and_the_rest_is_cached(tmp_path):
    """The poison is real: the worker dies by a signal whenever it meets that row."""
    folder = tiny.project(tmp_path / "project", 40, adapter=False, batch_tokens=64)
    poison = folder / "poison.py"
    poison.write_text(
        "import os, signal, rapidin_cli.work.worker as workers\n"
        "plain = workers.Worker.part\n"
        "def part(self, tokens):\n"
        f"    if tokens[0].shape[1] == {LONGEST}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, tokens)\n"
        "workers.Worker.part = part\n"
        "if __name__ == '__main__':\n"
        "    import rapidin_cli.commands.main; rapidin_cli.commands.main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, poison, "cache", "--workers", "2"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "workers died on the batch with rows data.jsonl:" in done.stderr
    assert "killed by signal 9" in done.stderr
    cached = Project.open(folder).opened().cache.snapshot().commit.rows
    assert 0 < cached < 40
    again = rin(folder, "cache")
    assert f"{40 - cached} rows computed, 40 cached" in again.stderr


def test_interrupted_it_keeps_what_was_done(tmp_path):
    folder = tiny.project(tmp_path / "project", 300, batch_tokens=64, commit_seconds=0.001)
    process = subprocess.Popen(
        [sys.executable, "-m", "rapidin_cli", "cache"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((folder / ".rin/caches").glob("*/log/*.json")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert "interrupted" in talk
    assert "Traceback" not in talk
    assert 0 < Project.open(folder).opened().cache.snapshot().commit.rows < 300
