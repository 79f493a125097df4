"""Disks that are full, read-only, or no folders."""

import itertools
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from rapidin_storage import (
    ArraySpec,
    Cache,
    CacheWriter,
    NotFoundError,
    ObjectStore,
    Snapshot,
    StorageError,
    open_root,
)
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.support.command_line import refused, rin, with_remote, without_cache
from tests.support.faulty import AFTER, BEFORE, attempt, files, fill, intact, whole
from tests.support.stored import ID, contents, expected, rows

BULKY = {"sketch": ArraySpec("int8", (1024,)), "loss": ArraySpec("float32")}


class Disk:
    """A small file system of its own."""

    def __init__(self, folder):
        self.folder = folder

    def remount(self, options):
        mounted = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(mounted, check=True, capture_output=True)

    @property
    def free(self):
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def leave(self, size):
        """Take all but so many bytes."""
        filler = self.folder / "filler"
        filler.write_bytes(b"")
        filler.write_bytes(bytes(max(0, self.free - size)))

    def clear(self):
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def bulky(start, stop):
    """Rows of a kilobyte that do not compress."""
    noise = np.random.default_rng(7).integers(-128, 128, (400, 1024), np.int8)
    return {**rows(start, stop), "sketch": noise[start:stop]}


def bulky_writer(root):
    return CacheWriter(Cache(root, ID), BULKY, {}, 32)


def bulky_contents(root):
    cache = Cache(root, ID)
    assert verify(cache).problems == []
    snapshot = cache.snapshot()
    assert snapshot.read(0, snapshot.commit.slots, ["sketch"])["sketch"].any(axis=1).all()
    return contents(snapshot)


def left_overs(folder):
    return [path for path in folder.rglob(".tmp-*") if path.is_file()]


def add_bulky(root, start, stop):
    one = bulky_writer(root)
    one.add(bulky(start, stop))
    one.commit()


def test_a_disk_that_fills_up_keeps_what_was_committed(disk):
    disk.remount("size=256k")
    root = open_root(disk.folder / "store")
    for done in range(0, 400, 40):
        error = attempt(lambda start=done: add_bulky(root, start, start + 40))
        if error is not None:
            break
    assert done
    assert type(error) is StorageError
    assert re.search(rf"cannot write {root.url}/\S+: No space left on device", str(error))
    assert bulky_contents(root) == expected(range(done))
    assert left_overs(disk.folder) == []
    with pytest.raises(StorageError, match="No space left"):
        add_bulky(root, 0, 400)
    assert bulky_contents(root) == expected(range(done))
    disk.remount("size=4m")
    again = bulky_writer(root)
    assert again.add(bulky(0, 400)) == 400 - done
    again.commit()
    assert bulky_contents(root) == expected(range(400))


def test_a_disk_may_be_full_at_any_moment_of_a_commit(disk):
    """A few kilobytes are left: for some objects, for all but the commit, for everything."""
    root = open_root(disk.folder / "store")
    add_bulky(root, 0, 40)
    ended = []
    for number, space in enumerate(range(0, 140_000, 4096)):
        start = 40 + 3 * number
        disk.leave(space)
        error = attempt(lambda start=start: add_bulky(root, start, start + 3))
        ended.append("full" if error else "done")
        if error is not None:
            assert "No space left on device" in str(error)
            assert bulky_contents(root) == expected(range(start))
        assert left_overs(disk.folder) == []
        disk.clear()
        disk.remount(f"size={2 + number}m")
        add_bulky(root, 0, start + 3)
        assert bulky_contents(root) == expected(range(start + 3))
    assert [key for key, _ in itertools.groupby(ended)] == ["full", "done"]


def test_a_pull_onto_a_full_disk_resumes_when_there_is_room(disk, tmp_path):
    source = open_root(tmp_path / "source")
    one = bulky_writer(source)
    one.add(bulky(0, 200))
    one.commit()
    one.add(bulky(200, 400))
    one.commit()
    here = open_root(disk.folder / "store")
    disk.leave(300_000)
    with pytest.raises(StorageError, match=rf"cannot write {here.url}/.*No space left on device"):
        synchronise(Cache(source, ID), Cache(here, ID))
    assert Cache(here, ID).snapshot() is None
    assert intact(disk.folder / "store")
    assert left_overs(disk.folder) == []
    disk.clear()
    disk.remount("size=4m")
    synchronise(Cache(source, ID), Cache(here, ID))
    assert bulky_contents(here) == expected(range(400))
    assert files(source.folder) == files(disk.folder / "store")


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_reading_through_needs_no_room_here(disk, tmp_path, state):
    source = open_root(tmp_path / "source")
    one = bulky_writer(source)
    one.add(bulky(0, 100))
    one.commit()
    if state == "full":
        disk.leave(0)
    else:
        disk.remount("ro")
    here = ObjectStore(open_root(disk.folder / "store"), [source])
    assert contents(Snapshot(here, Cache(source, ID).log.latest())) == expected(range(100))
    assert left_overs(disk.folder) == []


def test_a_read_only_store_is_read_and_not_written(disk, tmp_path):
    root = open_root(disk.folder / "store")
    fill(root, 0, BEFORE)
    disk.remount("ro")
    before = files(disk.folder)
    assert whole(root) == expected(range(BEFORE))
    refusal = rf"cannot write {root.url}/.*: Read-only file system"
    with pytest.raises(StorageError, match=refusal):
        fill(root, BEFORE, AFTER)
    there = open_root(tmp_path / "there")
    synchronise(Cache(root, ID), Cache(there, ID))
    assert whole(there) == expected(range(BEFORE))
    synchronise(Cache(there, ID), Cache(root, ID))  # nothing to be done
    fill(there, BEFORE, AFTER)
    with pytest.raises(StorageError, match=refusal):
        synchronise(Cache(there, ID), Cache(root, ID))
    with pytest.raises(StorageError, match=r"cannot write .*/new/.*: Read-only file system"):
        open_root(disk.folder / "new").prepare()
    assert files(disk.folder) == before
    disk.remount("rw")
    synchronise(Cache(there, ID), Cache(root, ID))
    assert whole(root) == expected(range(AFTER))


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    root = open_root(tmp_path / "store")
    with pytest.raises(StorageError, match=str(tmp_path / "store")):
        fill(root, 0, BEFORE)
    with pytest.raises(NotFoundError, match=str(tmp_path / "store")):
        root.check_format()


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_the_command_line_names_the_disk(disk, bench, state):
    folder = with_remote(bench, disk.folder / "store")
    if state == "full":
        disk.leave(16_384)
        reason = "No space left on device"
    else:
        disk.remount("ro")
        reason = "Read-only file system"
    refused(rin(folder, "push"), 1, str(disk.folder), reason)
    disk.remount("rw,size=4m")
    done = rin(folder, "push")
    assert done.returncode == 0, done.stderr
    objects = files(folder / ".rin/objects")
    assert files(disk.folder / "store/objects") == objects

    # And the way back, onto a store that is elsewhere.
    clone = without_cache(folder)
    with (clone / "rin.toml").open("a") as file:
        file.write(f'\n[storage]\nroot = "{disk.folder / "mine"}"\n')
    if state == "full":
        disk.leave(16_384)
    else:
        disk.remount("ro")
    refused(rin(clone, "pull"), 1, str(disk.folder / "mine"), reason)
    disk.remount("rw,size=8m")
    done = rin(clone, "pull")
    assert done.returncode == 0, done.stderr
    assert files(disk.folder / "mine/objects") == objects
