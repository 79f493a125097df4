"""A scan hashes a folder's files once, and again whenever they have changed in any way."""

import os
import shutil
import time

import numpy as np
import pytest

from rapidin_storage import Cache, CorruptError, open_root
from rapidin_storage import objects as objects_module
from rapidin_storage.objects import object_path
from rapidin_storage.verified import NAME
from tests.support.stored import rows, writer


@pytest.fixture
def folder(tmp_path):
    """A store of three chunks whose files are old enough to be trusted."""
    work = writer(open_root(tmp_path))
    work.add(rows(0, 20))
    work.commit()
    time.sleep(2.1)
    return tmp_path


@pytest.fixture
def hashed(monkeypatch):
    """How many objects have been hashed."""
    found = []
    check = objects_module.ObjectStore._check

    def watched(self, data, ref, what):
        found.append(ref.digest)
        check(self, data, ref, what)

    monkeypatch.setattr(objects_module.ObjectStore, "_check", watched)
    return found


def snapshot(folder):
    root = open_root(folder)
    return Cache(root, root.list("caches")[0]).snapshot()


def read(folder):
    """All sketches, through a program that has just started."""
    return np.concatenate(
        [part["sketch"].copy() for _, _, part in snapshot(folder).stream(["sketch"])]
    )


def scanned(hashed, folder):
    """How many chunks were hashed by a scan."""
    known = snapshot(folder)
    chunks = {known.manifest.chunk(n)["sketch"].digest for n in range(known.manifest.chunk_count)}
    hashed.clear()
    read(folder)
    return sum(digest in chunks for digest in hashed)


def test_what_has_not_changed_is_hashed_once(folder, hashed):
    whole = snapshot(folder).read(0, 20, ["sketch"])["sketch"]
    assert scanned(hashed, folder) == 3
    assert scanned(hashed, folder) == 0
    np.testing.assert_array_equal(read(folder), whole)
    assert len((folder / NAME).read_text().splitlines()) == 3


def test_the_last_chunk_is_cut_to_what_it_holds(folder):
    starts = [(a, b, len(part["sketch"])) for a, b, part in snapshot(folder).stream(["sketch"])]
    assert starts == [(0, 8, 8), (8, 16, 8), (16, 20, 4)]
    some = [(a, b) for a, b, _ in snapshot(folder).stream(["sketch"], [2, 0])]
    assert some == [(16, 20), (0, 8)]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_what_was_read_stays_for_so_many_steps(tmp_path, keep):
    work = writer(open_root(tmp_path))
    work.add(rows(0, 100))
    work.commit()
    expected = snapshot(tmp_path).read(0, 100, ["sketch"])["sketch"]
    given = []
    for start, stop, part in snapshot(tmp_path).stream(["sketch"], keep=keep):
        given.append((start, stop, part["sketch"]))
        time.sleep(0.01)  # those who read ahead fill what they may
        for first, last, values in given[-1 - keep :]:
            np.testing.assert_array_equal(values, expected[first:last])
    assert len(given) == 13
    # The memory of the first was used again.
    assert not np.array_equal(given[0][2], expected[:8])


@pytest.mark.parametrize("sly", [False, True], ids=["plainly", "with its times set back"])
def test_a_changed_file_is_hashed_again_and_named(folder, sly):
    read(folder)
    ref = snapshot(folder).manifest.chunk(1)["sketch"]
    path = folder / object_path(ref.digest)
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    if sly:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorruptError, match=f"sketch/c/1/0 of .* {ref.digest} .* different SHA-256"):
        read(folder)


def test_a_copied_store_is_hashed_again(folder, hashed, tmp_path_factory):
    read(folder)
    copy = tmp_path_factory.mktemp("copy") / "store"
    shutil.copytree(folder, copy)
    assert scanned(hashed, copy) == 3


def test_what_was_written_just_now_is_not_trusted_yet(tmp_path, hashed):
    work = writer(open_root(tmp_path))
    work.add(rows(0, 8))
    work.commit()
    assert scanned(hashed, tmp_path) == scanned(hashed, tmp_path) == 1
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", [b"", b"nonsense\n\xff\n", b"x" * 100 + b" "])
def test_a_damaged_list_costs_hashing_and_nothing_else(folder, hashed, content):
    read(folder)
    (folder / NAME).write_bytes(content)
    assert scanned(hashed, folder) == 3
    assert scanned(hashed, folder) <= 1  # a line after half a line is lost with it


def test_an_absurd_size_is_refused_before_memory_is_taken(folder, monkeypatch):
    known = snapshot(folder)
    chunk = known.manifest.chunk(0)
    huge = {**chunk, "sketch": chunk["sketch"]._replace(size=2**40)}
    monkeypatch.setattr(known.manifest, "chunk", lambda _: huge)
    with pytest.raises(CorruptError, match="claims to take 1099511627776 bytes"):
        list(known.stream(["sketch"]))


def test_a_scan_that_is_given_up_leaves_no_reader_behind(folder):
    stream = snapshot(folder).stream(["sketch"])
    next(stream)
    stream.close()
    assert len(read(folder)) == 20
