"""Damaged commits are named, never served, and mended."""

import contextlib
import functools
import json
import shutil

import numpy as np
import pytest

from rapidin_storage import Cache, CorruptError, StorageError, open_root
from rapidin_storage.gc import find_garbage
from rapidin_storage.sync import synchronise
from tests.support.damage import (
    COMMITS,
    EVERY,
    add_again,
    everything,
    files,
    flipped,
    log_file,
    mend,
    only,
    problems,
)
from tests.support.stored import ID


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
