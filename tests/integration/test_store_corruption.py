"""Damage of every kind to a local store: it is named, never served, and mended.

What claims absurd sizes is read by a process of its own with little memory, see `Sandbox`.
"""

import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numcodecs import GZip, Zstd

from rapidin_storage import (
    Cache,
    CacheWriter,
    CorruptError,
    FormatError,
    NotFoundError,
    ObjectRef,
    ObjectStore,
    StorageError,
    canonical_json,
    open_root,
)
from rapidin_storage.compact import compact
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.manifest import encode_page
from rapidin_storage.objects import object_path
from rapidin_storage.repair import repair
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.forked import rin
from tests.unit.test_storage import ARRAYS, ID, rows, writer

CHUNK = 8
COMMITS = (20, 24, 48)  # rows after each commit; the tail of the first is refilled by the second
EVERY = range(COMMITS[-1])
NAMES = [*ARRAYS, "digest"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    one = writer(open_root(folder), CHUNK)
    start = 0
    for stop in COMMITS:
        one.add(rows(start, stop))
        one.commit()
        start = stop
    return folder


@pytest.fixture
def root(pristine, tmp_path):
    return open_root(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture(scope="module")
def pushed(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    synchronise(Cache(open_root(pristine), ID), Cache(open_root(folder), ID))
    return folder


@pytest.fixture
def remote(pushed, tmp_path):
    """Has all that the store had before anything happened to it."""
    return open_root(shutil.copytree(pushed, tmp_path / "remote"))


def only(numbers):
    """Digest -> the stored bytes of the rows of those numbers."""
    every = rows(0, COMMITS[-1])
    return {
        every["digest"][n].tobytes(): (every["sketch"][n].tobytes(), every["loss"][n].tobytes())
        for n in numbers
    }


def everything(root, number=None):
    """Digest -> stored bytes of every row of a snapshot, read anew."""
    snapshot = Cache(root, ID).snapshot(number)
    values = snapshot.read(0, snapshot.commit.slots, [*ARRAYS])
    return {
        digest: (values["sketch"][slot].tobytes(), values["loss"][slot].tobytes())
        for digest, slot in snapshot.index.items()
    }


def files(root):
    """Path -> bytes of all that belongs to the store."""
    return {
        str(path.relative_to(root.folder)): path.read_bytes()
        for path in root.folder.rglob("*")
        if path.is_file()
    }


def problems(root, *upstreams):
    return verify(Cache(root, ID), upstreams).problems


def mend(root, *upstreams):
    """Repair until nothing is left, as `rin verify --repair` does; return what was done."""
    cache, done = Cache(root, ID), []
    while left := verify(cache, upstreams).problems:
        assert len(done) < 4, left
        done.append(repair(cache, left, upstreams))
    return done


def add_again(root, expected):
    """Add all rows once more, of which so many must be new."""
    again = writer(root)
    assert again.add(rows(0, COMMITS[-1])) == expected
    again.commit()


# --- Objects that are not what they were -------------------------------------------------


def newest(root):
    return Cache(root, ID).snapshot()


OBJECTS = {
    "sketch": lambda root: newest(root).manifest.chunk(1)["sketch"],
    "loss": lambda root: newest(root).manifest.chunk(1)["loss"],
    "digest": lambda root: newest(root).manifest.chunk(1)["digest"],
    "page": lambda root: newest(root).commit.pages[0],
    "group": lambda root: newest(root).commit.group,
}
READ_AS = {
    "sketch": "sketch/c/1/0 ",
    "loss": "loss/c/1 ",
    "digest": "digest/c/1/0 ",
    "page": "manifest page 0 ",
    "group": "zarr.json ",
}
CHECKED_AS = {
    **{name: f"{name} of rows 8 to 15 of snapshot 3" for name in NAMES},
    "page": "manifest page 0 of snapshot 3",
    "group": "the group metadata of snapshot",
}


def flipped(data, position, bit=0):
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


DAMAGES = {
    "first bit": lambda data: flipped(data, 0),
    "middle bit": lambda data: flipped(data, len(data) // 2, 4),
    "last bit": lambda data: flipped(data, len(data) - 1, 7),
    "truncated": lambda data: data[:-1],
    "lengthened": lambda data: data * 1000,
    "emptied": lambda _: b"",
    "deleted": lambda _: None,
}


def damage(root, ref, how):
    path = root.folder / object_path(ref.digest)
    data = DAMAGES[how](path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


damaged_objects = pytest.mark.parametrize("kind", OBJECTS)
in_every_way = pytest.mark.parametrize("how", DAMAGES)


@damaged_objects
@in_every_way
def test_a_damaged_object_is_named_and_not_served(root, kind, how):
    ref = OBJECTS[kind](root)
    damage(root, ref, how)
    error = NotFoundError if how == "deleted" else CorruptError
    touch = {"group": lambda root: newest(root).attributes}.get(kind, everything)
    with pytest.raises(error) as read:
        touch(root)
    assert ref.digest in str(read.value)
    assert READ_AS[kind] in str(read.value)
    assert root.url in str(read.value)

    if kind == "group":  # what the rows mean is lost, not the rows
        assert everything(root) == only(EVERY)
    elif kind in ARRAYS:
        assert set(newest(root).index) == set(only(EVERY))
    else:
        with pytest.raises(error, match=ref.digest):
            _ = newest(root).index
    if kind in NAMES:
        others = [name for name in NAMES if name != kind]
        snapshot = newest(root)
        assert snapshot.read(0, 48, others).keys() == set(others)
        assert snapshot.read(0, 8, [kind])[kind].tolist() == rows(0, 8)[kind].tolist()
        assert snapshot.read(16, 48, [kind])[kind].tolist() == rows(16, 48)[kind].tolist()


@damaged_objects
@in_every_way
def test_verify_names_a_damaged_object(root, kind, how):
    ref = OBJECTS[kind](root)
    damage(root, ref, how)
    (problem,) = problems(root)
    assert problem.part.ref == ref
    assert problem.current
    assert problem.cache == ID
    assert ref.digest in problem.message
    assert CHECKED_AS[kind] in problem.message
    assert problem.message.isprintable()
    quick = verify(Cache(root, ID), quick=True).problems
    seen_at_once = kind == "page" or not how.endswith("bit")
    assert [p.part.ref for p in quick] == ([ref] if seen_at_once else [])
    if kind == "page":
        with pytest.raises((CorruptError, NotFoundError), match=ref.digest):
            find_garbage(root, -3600)
    else:  # it is needed, damaged or not
        assert find_garbage(root, -3600).entries == []


@damaged_objects
@in_every_way
def test_repair_fetches_the_same_bytes_from_a_remote(root, remote, kind, how):
    before = files(root)
    damage(root, OBJECTS[kind](root), how)
    if how == "deleted":  # as after `rin gc --local`: the remote has it, and reading brings it
        assert verify(Cache(root, ID), [remote]).elsewhere == 1
        snapshot = Cache(root, ID, [remote]).snapshot()
        assert set(snapshot.index) == set(only(EVERY))
        snapshot.read(0, 48, NAMES)
        assert snapshot.attributes
    else:
        done = mend(root, remote)
        assert [(one.fetched, one.rows, one.given_up) for one in done] == [(1, 0, 0)]
    assert files(root) == before
    assert everything(root) == only(EVERY)


def test_a_remote_that_is_damaged_too_does_no_harm(root, remote):
    ref = OBJECTS["loss"](root)
    before = files(root)
    damage(root, ref, "middle bit")
    damage(remote, ref, "last bit")
    good = open_root(root.folder.parent / "good")
    for name, data in before.items():
        good.write(name, data)
    assert repair(Cache(root, ID), problems(root, remote, good), [remote, good]).fetched == 1
    assert files(root) == before


@damaged_objects
@pytest.mark.parametrize("helped", [False, True])
def test_what_is_whole_again_is_not_repaired(root, remote, kind, helped):
    """Bits flip on wires and in memory too: what reads well now was never lost."""
    before = files(root)
    damage(root, OBJECTS[kind](root), "middle bit")
    found = problems(root)
    for name, data in before.items():
        (root.folder / name).write_bytes(data)
    done = repair(Cache(root, ID), found, [remote] if helped else [])
    assert (done.rows, done.given_up) == (0, 0)
    assert files(root) == before


def test_a_commit_that_is_whole_again_is_not_set_aside(root):
    before = files(root)
    for number in (1, 2, 3):
        log_file(root, number).write_bytes(b"{}")
        found = problems(root)
        assert len(found) == 1
        log_file(root, number).write_bytes(before[Cache(root, ID).log.path(number)])
        repair(Cache(root, ID), found, [])
        assert files(root) == before


def test_much_damage_at_once_is_mended_by_a_remote(root, remote):
    before = files(root)
    for number, name in enumerate(sorted(before)):
        if name != "format.json" and number % 2:
            (root.folder / name).write_bytes(flipped(before[name], len(before[name]) // 2))
    mend(root, remote)
    after = {name: data for name, data in files(root).items() if "/damaged/" not in name}
    assert after == before


@pytest.mark.parametrize("kind", [*NAMES, "page"])
@in_every_way
def test_without_a_remote_the_rows_of_a_lost_chunk_are_given_up(root, kind, how):
    ref = OBJECTS[kind](root)
    damage(root, ref, how)
    (done,) = mend(root)
    # The page of the snapshot before lists the chunks that there were then.
    left = [*range(24)] if kind == "page" else [n for n in EVERY if n not in range(8, 16)]
    assert (done.fetched, done.rows, done.given_up) == (0, 48 - len(left), 1)
    snapshot = newest(root)
    assert everything(root) == only(left)
    assert (snapshot.commit.number, snapshot.commit.rows) == (4, len(left))
    assert snapshot.commit.lost == [ref.digest]
    if kind == "page":  # the pages of older snapshots are others
        assert everything(root, 1) == only(range(20))
    else:
        with pytest.raises(StorageError, match=ref.digest):
            everything(root, 1)
    add_again(root, 48 - len(left))
    assert everything(root) == only(EVERY)
    assert newest(root).commit.rows == 48
    assert problems(root) == []


def repaired_and_filled_up(root, how="deleted"):
    """A store that lost an array of a chunk, gave its rows up, and got them again."""
    ref = OBJECTS["loss"](root)
    damage(root, ref, how)
    mend(root)
    add_again(root, 8)
    return ref


def test_a_hole_that_only_the_past_needs_is_not_made_again(root):
    repaired_and_filled_up(root)
    cache = Cache(root, ID)
    compact(cache)
    before, hole = newest(root).commit, cache.snapshot(4).manifest.chunk(1)["loss"]
    damage(root, hole, "first bit")
    (done,) = mend(root)
    assert (done.fetched, done.rows, done.given_up) == (0, 0, 1)
    assert (newest(root).commit.tree, newest(root).commit.lost) == (before.tree, [hole.digest])
    assert not (root.folder / object_path(hole.digest)).exists()
    assert everything(root) == only(EVERY)


def test_after_a_repair_a_push_copies_all_that_the_newest_snapshot_needs(root, tmp_path):
    repaired_and_filled_up(root)
    there = open_root(tmp_path / "there")
    synchronise(Cache(root, ID), Cache(there, ID))
    assert everything(there) == only(EVERY)
    assert problems(there) == []


def test_after_a_repair_gc_keeps_all_that_the_newest_snapshot_needs(root):
    repaired_and_filled_up(root)
    remove_garbage(root, find_garbage(root, -3600))
    assert everything(root) == only(EVERY)
    assert problems(root) == []


def test_after_a_repair_new_damage_to_the_same_object_is_seen(root):
    """The rows that were computed again are, to the bit, the chunk that was lost."""
    ref = repaired_and_filled_up(root)
    assert newest(root).manifest.chunk(6)["loss"] == ref
    damage(root, ref, "last bit")
    assert [(p.part.ref, p.current) for p in problems(root)] == [(ref, True)]
    mend(root)
    add_again(root, 8)
    assert everything(root) == only(EVERY)


def test_a_store_that_gave_rows_up_merges_with_a_remote_that_has_them(root, remote):
    """The remote turns up only after the repair; what was given up comes back from it."""
    damage(root, OBJECTS["sketch"](root), "deleted")
    mend(root)
    assert len(everything(root)) == 40
    theirs = writer(remote)
    theirs.add(rows(48, 50))
    theirs.commit()
    synchronise(Cache(remote, ID), Cache(root, ID))
    assert everything(root).items() >= only(EVERY).items()
    assert problems(root) == []


def test_a_page_that_is_listed_anew_leaves_out_what_was_given_up(root, remote):
    """Though a remote has it: else the newest snapshot would name what is not here."""
    damage(root, OBJECTS["loss"](root), "deleted")
    mend(root)
    left = everything(root)
    page = newest(root).commit.pages[0]
    damage(root, page, "first bit")
    (done,) = mend(root, remote)
    assert (done.fetched, done.rows, done.given_up) == (0, 0, 1)
    assert everything(root) == left
    assert verify(Cache(root, ID), [remote]).elsewhere == 0


def test_group_metadata_that_nobody_has_is_an_error_with_a_way_out(root):
    damage(root, OBJECTS["group"](root), "last bit")
    with pytest.raises(StorageError, match=rf"{ID[:12]}.*rin cache"):
        mend(root)
    assert Cache(root, ID).log.numbers() == [1, 2, 3]


def test_damage_that_only_an_old_snapshot_sees_costs_no_row(root):
    ref = Cache(root, ID).snapshot(1).manifest.chunk(2)["loss"]
    damage(root, ref, "deleted")
    assert everything(root) == only(EVERY)
    (problem,) = problems(root)
    assert (problem.part.ref, problem.current, problem.commit) == (ref, False, 1)
    with pytest.raises(NotFoundError, match=ref.digest):
        everything(root, 1)
    (done,) = mend(root)
    assert done.rows == 0
    assert everything(root) == only(EVERY)


# --- Commits that are not what they were -------------------------------------------------


def log_file(root, number):
    return root.folder / Cache(root, ID).log.path(number)


@functools.cache
def _flips(folder, number):
    """Flip two bits of every 7th byte of a commit, one at a time; return what went wrong."""
    root = open_root(folder)
    path = log_file(root, number)
    good = path.read_bytes()
    wrong = {"other errors": [], "wrong rows": [], "unnamed": [], "unnoticed": []}
    for position in range(0, len(good), 7):
        for bit in (position % 8, (position + 3) % 8):
            context = good[max(0, position - 24) : position + 9]
            what = f"bit {bit} of byte {position}, in {context!r}"
            path.write_bytes(flipped(good, position, bit))
            try:
                if everything(root, number) != only(range(COMMITS[number - 1])):
                    wrong["wrong rows"].append(what)
                if not problems(root):
                    wrong["unnoticed"].append(what)
            except StorageError as error:
                named = f"commit {number} of cache", f"snapshot {number}", f"@{number}", "object "
                if not any(name in str(error) for name in named):
                    wrong["unnamed"].append(f"{what}: {error}")
            except Exception as error:
                wrong["other errors"].append(f"{what}: {type(error).__name__}: {error}")
    path.write_bytes(good)
    return wrong


@pytest.fixture(params=[1, 2, 3])
def flips(pristine, tmp_path_factory, request):
    folder = tmp_path_factory.getbasetemp() / "flips"
    if not folder.exists():
        shutil.copytree(pristine, folder)
    return _flips(folder, request.param)


@pytest.mark.parametrize("kind", ["other errors", "wrong rows", "unnamed", "unnoticed"])
def test_a_flipped_bit_in_a_commit_is_named_and_its_rows_are_not_served(flips, kind):
    assert not flips[kind], "\n".join(flips[kind])


MANGLED = {
    "a flipped bit": lambda data: flipped(data, len(data) // 2),
    "a slash that became a dot": lambda data: flipped(data, data.index(b'"/"') + 1),
    "a wrong count": lambda data: data.replace(b'"rows":', b'"rows":1'),
    "its end missing": lambda data: data[:-1],
    "its half missing": lambda data: data[: len(data) // 2],
    "one byte left": lambda data: data[:1],
    "nothing left": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
    "twice itself": lambda data: data + data,
    "random bytes": lambda _: np.random.default_rng(0).bytes(1000),
    "nothing but a list": lambda _: b"[]\n",
    "other spelling": lambda data: json.dumps(json.loads(data)).encode(),
}
in_every_commit = pytest.mark.parametrize("number", [1, 2, 3])


@pytest.mark.parametrize("how", MANGLED)
@in_every_commit
def test_a_mangled_commit_is_named(root, number, how):
    path = log_file(root, number)
    path.write_bytes(MANGLED[how](path.read_bytes()))
    with pytest.raises(CorruptError, match=rf"commit {number} of cache {ID[:12]}.*{path.name}"):
        everything(root, number)
    (problem,) = problems(root)
    assert (problem.part, problem.commit, problem.current) == (None, number, number == 3)
    assert f"commit {number} of cache {ID[:12]}" in problem.message
    with pytest.raises(CorruptError, match=f"commit {number} of cache {ID[:12]}"):
        find_garbage(root, -3600)
    if number < 3:
        assert everything(root) == only(EVERY)


@pytest.mark.parametrize("how", [*MANGLED, "deleted"])
@in_every_commit
def test_a_mangled_commit_comes_back_from_a_remote(root, remote, number, how):
    before = files(root)
    path = log_file(root, number)
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(MANGLED[how](path.read_bytes()))
    if how == "deleted" and number == 3:  # nothing says that it was there; a pull brings it
        synchronise(Cache(remote, ID), Cache(root, ID))
    else:
        assert [done.fetched for done in mend(root, remote)] == [1]
    assert files(root) == before


@pytest.mark.parametrize("how", ["its half missing", "nothing left", "deleted"])
@in_every_commit
def test_without_a_remote_a_mangled_commit_is_set_aside(root, number, how):
    path = log_file(root, number)
    mangled = None if how == "deleted" else MANGLED[how](path.read_bytes())
    if mangled is None:
        path.unlink()
    else:
        path.write_bytes(mangled)
    done = mend(root)
    kept = COMMITS[1] if number == 3 else COMMITS[2]
    assert everything(root) == only(range(kept))
    if mangled is not None:
        assert (root.folder / f"caches/{ID}/damaged/{path.name}").read_bytes() == mangled
        assert sum(one.given_up for one in done) >= 1
    add_again(root, COMMITS[2] - kept)
    assert everything(root) == only(EVERY)
    assert problems(root) == []
    there = open_root(root.folder.parent / "there")
    synchronise(Cache(root, ID), Cache(there, ID))
    assert everything(there) == only(EVERY)
    assert problems(there) == []


def test_all_commits_mangled_is_an_empty_cache_after_a_repair(root):
    for number in (1, 2, 3):
        log_file(root, number).write_bytes(b"{}")
    assert len(problems(root)) == 3
    mend(root)
    assert Cache(root, ID).snapshot() is None
    add_again(root, 48)
    assert everything(root) == only(EVERY)


def test_deep_nesting_in_a_commit_is_no_way_to_crash(root):
    """Just below the depth that the parser refuses, writing it again may not be possible."""
    path = log_file(root, 3)
    head, _, tail = path.read_bytes().partition(b'"writer":{')
    for depth in [*range(800, 1100), 100_000]:
        nested = b'"a":' + b"[" * depth + b"]" * depth + b","
        path.write_bytes(head + b'"writer":{' + nested + tail)
        with contextlib.suppress(CorruptError):
            Cache(root, ID).snapshot()


# --- What somebody wrote on purpose ------------------------------------------------------

ABSURD = 2**40
BLOCK = 128 * 1024
ZSTD = b"\x28\xb5\x2f\xfd"


def frame_that_claims(size):
    """A zstd frame of one byte whose header promises another size (RFC 8878, 3.1.1)."""
    return ZSTD + b"\xe0" + size.to_bytes(8, "little") + b"\x09\0\0" + b"x"


def bomb(size):
    """A zstd frame that says nothing of its size and unpacks into so many zeros."""
    repeat = (BLOCK << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (BLOCK << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return ZSTD + b"\0\x38" + repeat * (size // BLOCK - 1) + last


def write_commit(root, body):
    """Add a commit without asking whether it makes sense."""
    path = root.folder / Cache(root, ID).log.path(4)
    path.write_bytes(body if isinstance(body, bytes) else canonical_json(body) + b"\n")


def following(root):
    """The JSON of an honest fourth commit."""
    last = newest(root).commit
    return json.loads(replace(last, number=4, parent=last.digest, lost=[]).encode())


def commit(**changes):
    return lambda root: write_commit(root, {**following(root), **changes})


def raw_commit(**changes):
    """Also with what canonical JSON cannot spell: NaN, surrogates."""

    def write(root):
        body = {**following(root), **changes}
        write_commit(root, json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    return write


def array(name, **changes):
    """One array's zarr.json changed; None removes a field."""

    def write(root):
        body = following(root)
        document = {**body["arrays"][name], **changes}
        body["arrays"][name] = {k: v for k, v in document.items() if v is not None}
        write_commit(root, body)

    return write


def reshaped(name, row_shape):
    shape = {"shape": [48, *row_shape]}
    grid = {"name": "regular", "configuration": {"chunk_shape": [8, *row_shape]}}
    return array(name, **shape, chunk_grid=grid)


def recut(slots, chunk_rows, pages=1):
    """All arrays with so many slots in such chunks, by a commit that is consistent in itself."""

    def write(root):
        body = following(root)
        for document in body["arrays"].values():
            document["shape"][0] = slots
            document["chunk_grid"]["configuration"]["chunk_shape"][0] = chunk_rows
        changes = {"slots": slots, "chunk_rows": chunk_rows, "pages": body["pages"] * pages}
        write_commit(root, body | changes)

    return write


def page_of(data):
    """Stored bytes as the only page."""

    def write(root):
        ref = ObjectStore(root).put(data)
        write_commit(root, {**following(root), "pages": [list(ref)]})

    return write


def page(change):
    """The only page's JSON, changed."""

    def write(root):
        honest = newest(root).manifest
        chunks = [
            {name: list(ref) for name, ref in honest.chunk(index).items()} for index in range(6)
        ]
        body = {"first": 0, "chunks": chunks}
        body = change(body) or body
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        page_of(bytes(Zstd().encode(data)))(root)

    return write


def chunk(name, ref):
    """Chunk 1 of an array becomes what `ref` says."""
    return page(lambda body: body["chunks"][1].update({name: ref}))


def renamed(name, to):
    return page(lambda body: body["chunks"][1].update({to: body["chunks"][1].pop(name)}))


def chunk_of(name, make):
    """Chunk 1 of an array becomes other bytes, rightly named by their digest."""

    def write(root):
        honest = ObjectStore(root).get(newest(root).manifest.chunk(1)[name])
        data = make(honest)
        ref = ObjectStore(root).put(data)
        chunk(name, list(ref))(root)

    return write


def swapped(name, other):
    def write(root):
        chunk(name, list(newest(root).manifest.chunk(1)[other]))(root)

    return write


def group_of(data):
    def write(root):
        write_commit(root, {**following(root), "group": list(ObjectStore(root).put(data))})

    return write


def bombs_of(codec, data):
    """An array whose commit names another codec, and whose chunks are all one bomb."""

    def write(root):
        ref = ObjectStore(root).put(data)
        honest = newest(root).manifest
        chunks = [{**honest.chunk(index), "loss": ref} for index in range(6)]
        body = following(root)
        body["pages"] = [list(ObjectStore(root).put(encode_page(0, chunks)))]
        body["arrays"]["loss"]["codecs"] = [BYTES, codec]
        write_commit(root, body)

    return write


def zstd(data):
    return bytes(Zstd().encode(data))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
BLOSC = {
    "name": "blosc",
    "configuration": {
        "cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0
    },
}  # fmt: skip
NOBODY = "0" * 64
DEEP = b"[" * 200_000 + b"]" * 200_000

HOSTILE = {
    # Pages.
    "page: keys that lead outside": renamed("sketch", "../x"),
    "page: keys that lead to the root": renamed("loss", "/etc/passwd"),
    "page: a chunk without digests": renamed("digest", "digests"),
    "page: empty chunks": page(lambda body: {**body, "chunks": [{}] * 6}),
    "page: an object that nobody has": chunk("loss", [NOBODY, 41]),
    "page: an object outside": chunk("loss", ["../../../../etc/passwd", 41]),
    "page: a digest in capitals": chunk("loss", ["A" * 64, 41]),
    "page: a digest with a line break": chunk("loss", [NOBODY + "\n", 41]),
    "page: a number as digest": chunk("loss", [0, 41]),
    "page: no reference": chunk("loss", None),
    "page: a huge size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 2**47)),
    "page: an absurd size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 10**100)),
    "page: a negative size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, -1)),
    "page: a fraction as size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 4.1)),
    "page: another first chunk": page(lambda body: {**body, "first": 1024}),
    "page: a negative first chunk": page(lambda body: {**body, "first": -1}),
    "page: a word as first chunk": page(lambda body: {**body, "first": "0"}),
    "page: too few chunks": page(lambda body: {**body, "chunks": body["chunks"][:5]}),
    "page: too many chunks": page(lambda body: {**body, "chunks": body["chunks"] * 2}),
    "page: far too many chunks": page(lambda body: {**body, "chunks": [{}] * 100_000}),
    "page: chunks that are lists": page(lambda body: {**body, "chunks": [[]] * 6}),
    "page: a list": page(lambda _: b"[]"),
    "page: null": page(lambda _: b"null"),
    "page: not JSON": page(lambda _: b"\xff\xfe not JSON"),
    "page: a huge number": page(lambda _: b'{"first": ' + b"9" * 10_000 + b"}"),
    "page: deep nesting": page(lambda _: DEEP),
    "page: not zstd": page_of(b"not zstd at all"),
    "page: empty": page_of(b""),
    "page: half a zstd frame": page_of(zstd(b'{"first":0,"chunks":[]}')[:-4]),
    "page: a frame that claims a terabyte": page_of(frame_that_claims(ABSURD)),
    "page: a frame that claims 200 MB": page_of(frame_that_claims(200 * 2**20)),
    "page: a bomb": page_of(bomb(2**30)),
    # Chunks.
    "chunk: a frame that claims a terabyte": chunk_of("loss", lambda _: frame_that_claims(ABSURD)),
    "chunk: a frame that claims 3 GB": chunk_of("loss", lambda _: frame_that_claims(3 * 2**30)),
    "chunk: a bomb": chunk_of("loss", lambda _: bomb(2**30)),
    "chunk: a byte too many": chunk_of("loss", lambda data: zstd(Zstd().decode(data) + b"x")),
    "chunk: a byte too few": chunk_of("loss", lambda data: zstd(Zstd().decode(data)[1:])),
    "chunk: a row too many": chunk_of("sketch", lambda data: zstd(Zstd().decode(data) + bytes(16))),
    "chunk: a row too few": chunk_of("sketch", lambda data: zstd(Zstd().decode(data)[16:])),
    "chunk: no row": chunk_of("loss", lambda _: zstd(b"")),
    "chunk: not zstd": chunk_of("sketch", lambda _: b"not zstd at all"),
    "chunk: not compressed": chunk_of("loss", lambda data: bytes(Zstd().decode(data))),
    "chunk: empty": chunk_of("digest", lambda _: b""),
    "chunk: half a frame": chunk_of("digest", lambda data: data[: len(data) // 2]),
    "chunk: a larger array's": swapped("loss", "digest"),
    "chunk: a smaller array's": swapped("digest", "loss"),
    # Commits.
    "commit: more slots than its pages hold": recut(slots=56, chunk_rows=8),
    "commit: a page too many": commit(pages=[[NOBODY, 1]] * 2),
    "commit: no page": commit(pages=[]),
    "commit: slots by the terabyte": recut(slots=2**39, chunk_rows=8),
    "commit: slots by the gigabyte": recut(slots=2**26, chunk_rows=8),
    "commit: chunks by the gigabyte": recut(slots=48, chunk_rows=2**26),
    "commit: chunks and slots by the terabyte": recut(2**40 - 1, 2**26, pages=16),
    "commit: smaller chunks": recut(slots=48, chunk_rows=4),
    "commit: negative slots": recut(slots=-1, chunk_rows=8),
    "commit: true slots": commit(slots=True),
    "commit: slots in words": commit(slots="48"),
    "commit: a fraction of slots": commit(slots=48.0),
    "commit: huge slots": commit(slots=10**400),
    "commit: more rows than slots": commit(rows=49),
    "commit: negative rows": commit(rows=-1),
    "commit: no rows in a chunk": recut(slots=48, chunk_rows=0),
    "commit: no parent": commit(parent=None),
    "commit: an empty list as parent": commit(parent=[]),
    "commit: another number": commit(number=5),
    "commit: a number in words": commit(number="4"),
    "commit: a newer format": commit(format=2),
    "commit: a format in words": commit(format="1"),
    "commit: no format": commit(format=None),
    "commit: an unknown field": commit(extra=1),
    "commit: a time that is none": commit(time=5),
    "commit: NaN": raw_commit(writer={"a": float("nan")}),
    "commit: infinity": raw_commit(writer={"a": float("inf")}),
    "commit: half a surrogate": raw_commit(writer={"a": "\ud800"}),
    "commit: half a surrogate as time": raw_commit(time="\ud800"),
    "commit: a writer that is a list": commit(writer=[]),
    "commit: a huge number": lambda root: write_commit(root, b'{"format":' + b"9" * 10_000 + b"}"),
    "commit: deep nesting": lambda root: write_commit(root, DEEP),
    "commit: arrays as a list": commit(arrays=[]),
    "commit: no arrays": commit(arrays={}),
    "commit: lost that is no digest": commit(lost=["../x"]),
    "commit: merged that is a number": commit(merged=7),
    "commit: group outside": commit(group=["../../etc/passwd", 1]),
    "commit: group that nobody has": commit(group=[NOBODY, 94]),
    # Arrays.
    "array: a name that leads outside": lambda root: write_commit(
        root,
        (lambda body: body | {"arrays": {**body["arrays"], "../x": body["arrays"]["loss"]}})(
            following(root)
        ),
    ),
    "array: no digests": lambda root: write_commit(
        root,
        (lambda body: {**body, "arrays": {n: body["arrays"][n] for n in ARRAYS}})(following(root)),
    ),
    "array: digests of other shape": reshaped("digest", [4, 8]),
    "array: digests that are too short": reshaped("digest", [31]),
    "array: digests that are too long": reshaped("digest", [33]),
    "array: digests that are numbers": reshaped("digest", []),
    "array: rows of nothing": reshaped("sketch", [0]),
    "array: negative rows": reshaped("sketch", [-16]),
    "array: absurdly long rows": reshaped("sketch", [2**30]),
    "array: absurd rows in all directions": reshaped("sketch", [2**30] * 4),
    "array: rows of 2 GB": reshaped("sketch", [2**28]),
    "array: another dtype": array("sketch", data_type="int16"),
    "array: a dtype that pickles": array("sketch", data_type="object"),
    "array: another byte order": array(
        "loss",
        codecs=[
            {"name": "bytes", "configuration": {"endian": "big"}},
            {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
        ],
    ),
    "array: no codec": array("sketch", codecs=[]),
    "array: not compressed": array("loss", codecs=[BYTES]),
    "array: gzip instead of zstd": array("loss", codecs=[BYTES, GZIP]),
    "array: blosc instead of zstd": array("loss", codecs=[BYTES, BLOSC]),
    "array: a checksum on top": array("loss", codecs=[BYTES, GZIP, {"name": "crc32c"}]),
    "array: codecs in another order": array("loss", codecs=[GZIP, BYTES]),
    "array: a codec without settings": array("loss", codecs=[BYTES, {"name": "gzip"}]),
    "array: a codec with absurd settings": array(
        "loss", codecs=[BYTES, {"name": "zstd", "configuration": {"level": "x"}}]
    ),
    "array: a gzip bomb": bombs_of(GZIP, bytes(GZip(9).encode(bytes(2**30)))),
    "array: a blosc header that claims 2 GB": bombs_of(
        BLOSC, bytes([2, 1, 0, 1]) + (2**31 - 17).to_bytes(4, "little") + bytes(8)
    ),
    "array: a fill value that is none": array("loss", fill_value="x"),
    "array: a list as fill value": array("loss", fill_value=[]),
    "array: other chunk keys": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}
    ),
    "array: an unknown separator": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": {"separator": "x"}}
    ),
    "array: absurd chunk keys": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": 7}
    ),
    "array: names of other dimensions": array("loss", dimension_names=["a", "b", "c"]),
    "array: an unknown field": array("loss", surprise={"must_understand": True}),
    # Groups.
    "group: empty": group_of(b""),
    "group: a list": group_of(b"[]"),
    "group: null": group_of(b"null"),
    "group: not JSON": group_of(b"\xff{"),
    "group: an array": group_of(b'{"zarr_format": 3, "node_type": "array"}'),
    "group: an old Zarr": group_of(b'{"zarr_format": 2, "node_type": "group"}'),
    "group: attributes that are a list": group_of(
        b'{"zarr_format": 3, "node_type": "group", "attributes": [1]}'
    ),
    "group: deep nesting": group_of(DEEP),
    "group: a huge number": group_of(b'{"zarr_format": ' + b"9" * 10_000 + b"}"),
}
TOLERABLE = {
    "commit: an empty text as parent": commit(parent=""),
    "commit: false as parent": commit(parent=False),
    "array: another shape": reshaped("sketch", [4, 4]),
    "array: attributes that are a list": array("loss", attributes=[1]),
    "array: attributes missing": array("loss", attributes=None),
    "page: more keys, that lead outside": page(
        lambda body: body["chunks"][1].update({"../x": body["chunks"][1]["loss"]})
    ),
    "page: an unknown field": page(lambda body: {**body, "more": 1}),
    "page: false as first chunk": page(lambda body: {**body, "first": False}),
}
HARMLESS = {
    "an honest commit": commit(),
}


class Sandbox:
    """A process with little memory that looks at stores; it is replaced when it dies."""

    SECONDS = 20

    def __init__(self):
        self.process = None

    def look(self, root):
        """What each operation on a store ended in, see `look`."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        timer = threading.Timer(self.SECONDS, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(f"{root.folder}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self.process.wait()
            self.close()
            pytest.fail(f"the process that read the store died ({code}), or took too long")
        return json.loads(line)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def look(root):
    """Try every way of reading; return name -> a value, or the error as [type, ours, text]."""

    def read():
        return "right" if everything(root) == only(EVERY) else "wrong"

    operations = {
        "read": read,
        "index": lambda: "right" if set(newest(root).index) == set(only(EVERY)) else "wrong",
        "old": lambda: "right" if everything(root, 3) == only(EVERY) else "wrong",
        "verify": lambda: [problem.message for problem in problems(root)],
        "garbage": lambda: len(find_garbage(root, -3600).entries),
        "write": lambda: writer(root).new_rows,
    }
    seen = {}
    for name, operation in operations.items():
        try:
            seen[name] = operation()
        except BaseException as error:
            ours = isinstance(error, StorageError)
            seen[name] = {"type": type(error).__name__, "ours": ours, "text": str(error)[:2000]}
    return seen


def serve():
    """Look at the stores whose folders come in; from the second on with little memory."""
    for line in sys.stdin:
        print(json.dumps(look(open_root(line.rstrip("\n")))), flush=True)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 400 * 2**20
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.fixture(scope="module")
def sandbox(pristine):
    made = Sandbox()
    made.look(open_root(pristine))
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(sandbox, pristine, tmp_path_factory):
    """Case -> what each operation saw; every case is tried once."""

    @functools.cache
    def see(case):
        folder = tmp_path_factory.mktemp("hostile") / "store"
        root = open_root(shutil.copytree(pristine, folder))
        (HOSTILE | TOLERABLE | HARMLESS)[case](root)
        return sandbox.look(root)

    return see


@pytest.mark.parametrize("case", HOSTILE | TOLERABLE)
def test_what_is_hostile_is_refused_by_a_sentence(seen, case):
    found = seen(case)
    others = {n: v for n, v in found.items() if isinstance(v, dict) and not v["ours"]}
    assert others == {}
    assert "wrong" not in found.values()
    assert found["old"] == "right"
    read = found["read"]
    if read != "right" or case in HOSTILE:
        names = ("commit 4 of cache", "snapshot 4", "@4", "object ", "page 0 (")
        assert any(name in read["text"] for name in names), read
        assert len(read["text"]) < 500


@pytest.mark.parametrize("case", HOSTILE | TOLERABLE)
def test_what_cannot_be_read_is_a_problem_to_verify(seen, case):
    """Else `rin retrieve` would send people to a `rin verify` that finds nothing."""
    found = seen(case)
    assert found["verify"] != [] or (found["read"], found["index"]) == ("right", "right")


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_harmless_is_read(seen, case):
    found = seen(case)
    assert (found["read"], found["index"], found["verify"]) == ("right", "right", [])


def test_a_commit_with_an_absurd_number_costs_nothing(root, sandbox):
    """Only its name is absurd; what lies between is not counted one by one."""
    shutil.copy(log_file(root, 3), log_file(root, 99_999_999))
    found = sandbox.look(root)
    assert found["read"]["type"] == "CorruptError"
    assert "commit 99999999 of cache" in found["read"]["text"]
    messages = found["verify"]
    assert isinstance(messages, list), messages
    assert any("commit 99999999 of cache" in message for message in messages)
    assert len(messages) < 10


# --- The rest ----------------------------------------------------------------------------

FORMATS = {
    "empty": b"",
    "half": b'{"format": "rapidin-st',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b"\xff\xff",
    "deep": b"[" * 4096,
    "large": b" " * 10**6 + b"{}",
    "another program's": b'{"format": "zarr", "version": 1}',
    "newer": b'{"format": "rapidin-store", "version": 2}',
    "a version in words": b'{"format": "rapidin-store", "version": "1"}',
    "a true version": b'{"format": "rapidin-store", "version": true}',
    "no version": b'{"format": "rapidin-store"}',
    "a huge version": b'{"format": "rapidin-store", "version": ' + b"9" * 4000 + b"}",
}


@pytest.mark.parametrize("how", FORMATS)
def test_a_mangled_format_file_stops_whoever_writes_or_cleans(root, how):
    (root.folder / "format.json").write_bytes(FORMATS[how])
    for attempt in (root.check_format, lambda: writer(root), lambda: find_garbage(root)):
        with pytest.raises((FormatError, CorruptError)) as refused:
            attempt()
        meant = how in ("another program's", "newer")
        assert type(refused.value) is (FormatError if meant else CorruptError)
        assert root.url in str(refused.value)
        assert len(str(refused.value)) < 500
    assert Cache(root, ID).log.numbers() == [1, 2, 3]


def test_files_of_others_among_the_caches_are_left_alone(root):
    """What file managers and synchronising programs leave behind is no damage."""
    for name in ("caches/.DS_Store", f"caches/{ID}/log/Thumbs.db", "objects/sha256/.DS_Store"):
        (root.folder / name).write_bytes(b"mine")
    assert everything(root) == only(EVERY)
    assert problems(root) == []
    remove_garbage(root, find_garbage(root, -3600))
    assert everything(root) == only(EVERY)
    assert (root.folder / "caches/.DS_Store").read_bytes() == b"mine"


def test_a_read_that_ends_in_an_error_may_be_repeated(root):
    """Nothing of it is remembered: after a repair the same snapshot reads on."""
    ref = OBJECTS["loss"](root)
    path = root.folder / object_path(ref.digest)
    good = path.read_bytes()
    snapshot = newest(root)
    path.write_bytes(flipped(good, 3))
    with pytest.raises(CorruptError):
        snapshot.read(0, 48, NAMES)
    path.write_bytes(good)
    assert snapshot.read(0, 48, ["loss"])["loss"].tolist() == rows(0, 48)["loss"].tolist()


def test_a_reference_with_another_size_is_refused(root):
    ref = OBJECTS["loss"](root)
    store = ObjectStore(root)
    for size in (0, ref.size - 1, ref.size + 1, 2**47):
        with pytest.raises(CorruptError, match=ref.digest):
            store.get(ObjectRef(ref.digest, size))


# --- The command line --------------------------------------------------------------------


@pytest.fixture
def project(cached_project, tmp_path):
    """A tiny project whose 40 rows lie in 5 chunks."""
    from rapidin_cli import Project

    folder = Path(shutil.copytree(cached_project, tmp_path / "project"))
    cache = Project.open(folder).opened().cache
    snapshot = cache.snapshot()
    specs = {name: spec for name, spec in snapshot.commit.specs.items() if name != "digest"}
    values = snapshot.read(0, 40, [*specs, "digest"])
    attributes = snapshot.attributes
    shutil.rmtree(folder / ".rin/caches")
    shutil.rmtree(folder / ".rin/objects")
    smaller = CacheWriter(cache, specs, attributes, CHUNK)
    smaller.add(values)
    smaller.commit()
    Project.open(folder).cache()  # computes nothing, but rin.lock names the snapshot
    return folder


# Imported late: the sandbox, which imports this file, is to start without torch.
def stored_rows(folder):
    from tests.integration import test_commands

    return test_commands.stored_rows(folder)


def newest_of(folder):
    from rapidin_cli import Project

    return Project.open(folder).opened().cache.snapshot()


@pytest.mark.parametrize("how", ["middle bit", "truncated", "deleted"])
def test_the_way_out_of_damage_on_the_command_line(project, how):
    before = stored_rows(project)
    snapshot = newest_of(project)
    ref = snapshot.manifest.chunk(2)["sketch"]
    damage(open_root(project / ".rin"), ref, how)

    asked = rin(project, "retrieve", "--row", "data.jsonl:7")
    assert asked.returncode == 5, asked.stderr
    assert ref.digest in asked.stderr
    assert "sketch/c/2" in asked.stderr
    assert "\nnext:  rin verify --repair" in asked.stderr
    checked = rin(project, "verify")
    assert checked.returncode == 5, checked.stderr
    assert f"sketch of rows 16 to 23 of snapshot {snapshot.commit.number}" in checked.stdout
    assert ref.digest in checked.stdout
    assert "next: rin verify --repair" in checked.stderr

    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert (
        "8 rows are lost and were removed from the newest snapshot: data.jsonl:" in repaired.stderr
    )
    assert "rin cache" in repaired.stderr
    assert rin(project, "verify").returncode == 0
    again = rin(project, "cache")
    assert again.returncode == 0, again.stderr
    assert "8 rows computed, 40 cached" in again.stderr
    after = stored_rows(project)
    assert after.keys() == before.keys()
    # Other rows are untouched; those that were computed again are so in other batches.
    assert sum(after[digest] != row for digest, row in before.items()) <= 8
    for digest, row in before.items():
        ours, theirs = (np.frombuffer(values[0], np.int8) for values in (row, after[digest]))
        np.testing.assert_allclose(ours, theirs, atol=1)
    assert rin(project, "verify").returncode == 0
    assert rin(project, "retrieve", "--row", "data.jsonl:7").returncode == 0
    for talk in (asked, checked, repaired, again):
        assert "Traceback" not in talk.stderr


def test_a_remote_heals_a_project(project, tmp_path):
    with (project / "rin.toml").open("a") as file:
        file.write(f'\n[remote.origin]\nurl = "{tmp_path / "remote"}"\n')
    assert rin(project, "push").returncode == 0
    before = files(open_root(project / ".rin"))
    ref = newest_of(project).manifest.chunk(2)["sketch"]
    damage(open_root(project / ".rin"), ref, "middle bit")
    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "1 objects were fetched" in repaired.stderr
    assert files(open_root(project / ".rin")) == before


def test_a_newest_commit_that_is_lost_is_not_passed_over_in_silence(project):
    (path,) = (project / ".rin/caches").glob("*/log/*.json")
    path.write_bytes(path.read_bytes()[:100])
    asked = rin(project, "retrieve", "--row", "data.jsonl:7")
    assert asked.returncode == 5
    assert "commit 1 of cache" in asked.stderr
    repaired = rin(project, "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "next: rin cache" in repaired.stderr
    again = rin(project, "cache")
    assert "40 rows computed, 40 cached" in again.stderr


if __name__ == "__main__":
    serve()
