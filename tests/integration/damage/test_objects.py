"""Damaged objects are named, never served, and mended."""

import pytest

from rapidin_storage import Cache, CorruptError, NotFoundError, StorageError, open_root
from rapidin_storage.compact import compact
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.objects import object_path
from rapidin_storage.repair import repair
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.support.damage import (
    CHECKED_AS,
    DAMAGES,
    EVERY,
    NAMES,
    OBJECTS,
    READ_AS,
    add_again,
    damage,
    everything,
    files,
    flipped,
    log_file,
    mend,
    newest,
    only,
    problems,
)
from tests.support.stored import ARRAYS, ID, rows, writer

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
