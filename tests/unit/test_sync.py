"""Push, pull, reading through, gc and export: one contract for every kind of place."""

import os
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import zarr

from rapidin_storage import (
    Cache,
    CacheWriter,
    ConflictError,
    CorruptError,
    NotFoundError,
    ObjectRef,
    ObjectStore,
    StorageError,
    cache_name,
    open_root,
)
from rapidin_storage.compact import compact
from rapidin_storage.contents import GROUP, PAGE, parts
from rapidin_storage.export import export_zarr
from rapidin_storage.gc import drop_local, find_garbage, parse_grace, remove_garbage
from rapidin_storage.objects import OBJECTS, object_path
from rapidin_storage.repair import repair
from rapidin_storage.roots import FRESH
from rapidin_storage.sync import Synced, compare, synchronise
from rapidin_storage.verify import verify
from tests.unit.test_storage import ARRAYS, ID, contents, digest, expected, rows, writer

EVERYTHING = -3600.0
"""A grace that makes everything old: what was written up to an hour from now."""


def put(root, start, stop, chunk_rows=8):
    one = writer(root, chunk_rows)
    one.add(rows(start, stop))
    return one.commit()


def newest(root):
    return Cache(root, ID).snapshot()


def held(root, number=None):
    return contents(Cache(root, ID).snapshot(number))


def tree(root):
    return newest(root).commit.tree


def bring(source, target, progress=None, **options):
    return synchronise(Cache(source, ID), Cache(target, ID), progress, **options)


def stand(source, target):
    return compare(Cache(source, ID), Cache(target, ID))


def objects(root):
    return {entry.path.rpartition("/")[2] for entry in root.entries(OBJECTS)}


def chunks(root):
    manifest = newest(root).manifest
    return [dict(manifest.chunk(index)) for index in range(manifest.chunk_count)]


def lose(root, ref):
    root.remove(object_path(ref.digest))


def give_up(root, chunk, how="missing"):
    """Lose a chunk that nobody else has; return the object."""
    ref = newest(root).manifest.chunk(chunk)["loss"]
    if how == "missing":
        lose(root, ref)
    else:
        root.write(object_path(ref.digest), b"x" * ref.size)
    repair(Cache(root, ID), verify(Cache(root, ID)).problems, [])
    return ref


def is_whole(root):
    """Every snapshot can be read, from this place alone."""
    verdict = verify(Cache(root, ID))
    return (verdict.problems, verdict.elsewhere) == ([], 0)


class Tally:
    """Counts what a transfer tells."""

    def __init__(self):
        self.objects = self.size = self.copied = self.present = 0
        self.lock = threading.Lock()

    def start(self, objects, size):
        self.objects += objects
        self.size += size

    def advance(self, size, *, copied):
        with self.lock:
            self.size -= size
            self.copied += copied
            self.present += not copied


@contextmanager
def at_once(*work):
    """Do all of it in threads that start together; their errors are raised."""
    barrier, errors = threading.Barrier(len(work)), []

    def run(one):
        barrier.wait()
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.fixture
def here(tmp_path):
    return open_root(tmp_path / "here")


@pytest.fixture
def third(tmp_path):
    return open_root(tmp_path / "third")


class SyncContract:
    """A folder, `here`, and a second place of any kind: a subclass gives `there`."""

    tick = 0.02
    """Seconds after which a file that is written again is seen to be newer."""

    # Push and pull

    def test_the_first_push_repeats_the_log_byte_for_byte(self, here, there):
        for start, stop in ((0, 5), (5, 11), (11, 30)):
            put(here, start, stop)
        tally = Tally()
        done = bring(here, there, tally)
        assert (done.commits, done.merged, done.snapshot.commit.number) == (3, False, 3)
        log = Cache(here, ID).log
        for number in (1, 2, 3):
            assert there.read(log.path(number)) == here.read(log.path(number))
            assert held(there, number) == held(here, number)
        assert objects(there) == objects(here)
        assert (tally.copied, tally.present, tally.size) == (tally.objects, 0, 0)
        assert tally.objects == len(objects(here))
        assert is_whole(there)

    def test_nothing_to_push_is_no_error(self, here, there):
        assert bring(here, there) == Synced(None)
        assert there.size("format.json") is None

    def test_a_second_push_copies_nothing(self, here, there):
        put(here, 0, 20)
        bring(here, there)
        before, tally = chunks(there), Tally()
        assert bring(here, there, tally).commits == 0
        assert bring(there, here, tally).commits == 0
        assert (tally.objects, tally.copied, tally.present) == (0, 0, 0)
        assert chunks(there) == before

    def test_a_push_of_new_rows_copies_only_what_is_new(self, here, there):
        put(here, 0, 16)
        bring(here, there)
        before = objects(there)
        put(here, 16, 24)
        tally = Tally()
        assert bring(here, there, tally).commits == 1
        assert (tally.objects, tally.copied, tally.present) == (4, 4, 0)  # a chunk and its page
        assert len(objects(there) - before) == 4
        assert held(there) == expected(range(24))

    def test_logs_that_went_different_ways_are_merged_as_a_set(self, here, there):
        put(here, 0, 16)
        bring(here, there)
        put(here, 16, 32)
        put(there, 24, 40)
        ours = tree(here)
        done = bring(here, there)
        assert (done.commits, done.merged) == (1, True)
        assert done.snapshot.commit.merged == [ours]
        assert held(there) == expected(range(40))
        assert newest(there).commit.rows == int(newest(there).digests.any(axis=1).sum()) == 40
        assert is_whole(there)

        done = bring(there, here)
        assert (done.commits, done.merged) == (1, False)
        assert held(here) == expected(range(40))
        assert tree(here) == tree(there)
        assert stand(here, there).equal
        assert stand(there, here).equal
        assert is_whole(here)

    def test_a_merge_takes_whole_chunks_as_they_are(self, here, there):
        """Whole or the last; only what both have in part is written anew."""
        put(there, 100, 109)
        put(here, 0, 20)
        ours = chunks(here)
        bring(here, there)
        assert all(chunk in chunks(there) for chunk in ours)
        put(here, 20, 36)
        put(there, 20, 22)
        whole = chunks(here)[3]
        bring(here, there)
        assert whole in chunks(there)
        assert held(there) == expected([*range(36), *range(100, 109)])

    def test_who_has_a_row_already_keeps_its_own(self, here, there):
        other = rows(0, 8)
        other["loss"] = other["loss"] + np.float32(0.5)
        mine = writer(there)
        mine.add(other)
        mine.commit()
        put(here, 0, 12)
        bring(here, there)
        kept = {digest(n): n + 0.5 for n in range(8)}
        assert held(there) == {**expected(range(12)), **kept}
        bring(there, here)
        assert held(here) == held(there)

    def test_a_merge_without_new_rows_ends_in_one_tree_too(self, here, there):
        put(there, 0, 12)
        put(here, 0, 8)
        assert bring(here, there).merged
        assert bring(here, there).commits == 0
        bring(there, here)
        assert tree(here) == tree(there)
        assert held(here) == expected(range(12))

    def test_three_places_come_together(self, here, there, third):
        put(here, 0, 13)
        put(third, 8, 30)
        put(there, 25, 41)
        for source, target in ((here, there), (third, there), (there, here), (there, third)):
            bring(source, target)
        assert tree(here) == tree(third) == tree(there)
        assert held(here) == expected(range(41))
        for one in (here, third):
            assert bring(one, there).commits == 0
            assert is_whole(one)
        put(third, 41, 50)
        put(here, 45, 60)
        for source, target in ((here, third), (third, there), (there, here)):
            bring(source, target)
        assert tree(here) == tree(third) == tree(there)
        assert held(there) == expected(range(60))

    def test_old_snapshots_outlive_a_merge(self, here, there):
        put(here, 0, 5)
        put(here, 5, 20)
        put(there, 10, 14)
        put(there, 14, 30)
        bring(here, there)
        bring(there, here)
        assert held(here, 1) == expected(range(5))
        assert held(here, 2) == expected(range(20))
        assert held(there, 1) == expected(range(10, 14))
        assert held(there, 2) == expected(range(10, 30))
        assert held(here, 3) == held(there, 3) == expected(range(30))

    def test_each_place_may_have_its_own_chunk_size(self, here, there):
        put(here, 0, 20, chunk_rows=8)
        put(there, 10, 33, chunk_rows=5)
        bring(here, there)
        assert held(there) == expected(range(33))
        assert newest(there).commit.chunk_rows == 5
        bring(there, here)
        assert tree(here) == tree(there)
        assert held(here, 1) == expected(range(20))
        put(here, 30, 40)
        bring(here, there)
        assert held(there) == expected(range(40))
        assert is_whole(here)
        assert is_whole(there)

    def test_holes_are_copied_and_merged_like_anything_else(self, here, there):
        """Two writers raced here, so that chunks in the middle are not full."""
        put(here, 0, 5)
        one, two = writer(here), writer(here)
        one.add(rows(5, 30))
        two.add(rows(20, 47))
        one.commit()
        two.commit()
        assert newest(here).commit.slots > 47
        bring(here, there)
        assert tree(there) == tree(here)
        put(here, 47, 50)
        put(there, 49, 60)
        bring(here, there)
        bring(there, here)
        assert tree(here) == tree(there)
        assert held(here) == expected(range(60))
        assert newest(here).commit.rows == 60

    def test_compare_says_who_has_more(self, here, there):
        assert stand(here, there).equal
        put(here, 0, 5)
        put(here, 5, 10)
        state = stand(here, there)
        assert [c.number for c in state.ahead] == [1, 2]
        assert (state.behind, state.diverged, state.equal) == (False, False, False)
        state = stand(there, here)
        assert (state.ahead, state.behind, state.diverged, state.equal) == ((), True, False, False)

        bring(here, there)
        assert stand(here, there).equal
        put(here, 10, 15)
        put(here, 15, 20)
        assert [c.number for c in stand(here, there).ahead] == [3, 4]
        assert stand(there, here).behind
        assert not stand(there, here).ahead

        put(there, 20, 25)
        for source, target in ((here, there), (there, here)):
            state = stand(source, target)
            assert (state.behind, state.diverged, state.equal) == (True, True, False)
            assert [c.tree for c in state.ahead] == [tree(source)]

        bring(here, there)
        state = stand(here, there)
        assert (state.ahead, state.behind, state.diverged) == ((), True, False)
        state = stand(there, here)
        assert [c.tree for c in state.ahead] == [tree(there)]
        assert (state.behind, state.diverged) == (False, False)

    def test_a_push_that_fails_commits_nothing_and_is_taken_up_again(
        self, here, there, monkeypatch
    ):
        monkeypatch.setattr("rapidin_storage.sync._SMALL", 0)  # those are just sent again
        put(here, 0, 24)
        ref = newest(here).manifest.chunk(2)["loss"]
        good = here.read(object_path(ref.digest))
        lose(here, ref)
        with pytest.raises(NotFoundError, match=rf"loss of rows 16 to 23 .*{ref.digest}"):
            bring(here, there)
        assert Cache(there, ID).log.numbers() == []
        here.write(object_path(ref.digest), b"x" * ref.size)
        with pytest.raises(CorruptError, match=ref.digest):
            bring(here, there)
        assert ref.digest not in objects(there)
        assert Cache(there, ID).log.numbers() == []
        here.write(object_path(ref.digest), good)
        before, tally = len(objects(there)), Tally()
        bring(here, there, tally)
        assert (tally.present, tally.copied) == (before, tally.objects - before)
        assert held(there) == expected(range(24))

    def test_a_push_that_stops_between_two_commits_goes_on_there(self, here, there, monkeypatch):
        for number in range(3):
            put(here, number * 8, number * 8 + 8)
        create = type(there).create

        def failing(root, path, data):
            if path.endswith("00000002.json"):
                raise StorageError("the network is gone")
            return create(root, path, data)

        with monkeypatch.context() as broken:
            broken.setattr(type(there), "create", failing)
            with pytest.raises(StorageError, match="gone"):
                bring(here, there)
        assert held(there) == expected(range(8))
        assert bring(here, there).commits == 2
        assert Cache(there, ID).log.read(3) == Cache(here, ID).log.read(3)

    def test_of_two_who_push_at_once_both_are_in_the_log(self, here, there, third):
        put(here, 0, 8)
        bring(here, there)
        bring(there, third)
        put(here, 8, 21)
        put(third, 16, 33)
        with at_once(lambda: bring(here, there), lambda: bring(third, there)):
            put(there, 30, 40)  # and a third writes there
        log = Cache(there, ID).log
        commits = log.read_all()
        assert [c.number for c in commits] == list(range(1, len(commits) + 1))
        assert [c.parent for c in commits[1:]] == [c.digest for c in commits[:-1]]
        assert held(there) == expected(range(40))
        assert is_whole(there)
        for one in (here, third):
            assert not stand(one, there).ahead
            bring(there, one)
        assert tree(here) == tree(third) == tree(there)

    def test_a_pull_does_not_disturb_a_writer(self, here, there):
        put(there, 0, 10)
        mine = writer(here)
        mine.add(rows(5, 30))
        bring(there, here)
        snapshot = mine.commit()
        assert contents(snapshot) == expected(range(30))
        assert snapshot.commit.number == 2

    # After a repair

    def test_a_store_that_gave_something_up_is_pushed_without_it(self, here, there):
        put(here, 0, 8)
        put(here, 8, 24)
        ref = give_up(here, 1)
        bring(here, there)
        assert ref.digest not in objects(there)
        assert held(there) == expected([*range(8), *range(16, 24)])
        assert held(there, 1) == expected(range(8))
        assert is_whole(there)
        assert tree(there) == tree(here)

    @pytest.mark.parametrize("how", ["missing", "corrupt"])
    def test_what_was_given_up_and_made_again_is_pushed_and_kept(self, here, there, how):
        """The same rows in a full chunk are the same object as before."""
        put(here, 0, 24)
        ref = give_up(here, 2, how)
        put(here, 16, 24)
        assert ref in [chunk["loss"] for chunk in chunks(here)]
        bring(here, there)
        for root in (here, there):
            remove_garbage(root, find_garbage(root, EVERYTHING))
            assert held(root) == expected(range(24))
            assert is_whole(root)

    def test_a_store_that_gave_rows_up_takes_none_from_others(self, here, there):
        """Rows are a set: who lost some is not ahead of who has them."""
        put(here, 0, 24)
        bring(here, there)
        give_up(here, 1)
        bring(here, there)
        assert held(there) == expected(range(24))
        bring(there, here)
        assert held(here) == expected(range(24))
        assert is_whole(here)
        assert tree(here) == tree(there)

    def test_a_pull_brings_back_what_was_given_up(self, here, there):
        put(here, 0, 24)
        bring(here, there)
        give_up(here, 1)
        bring(there, here)
        assert held(here) == expected(range(24))
        assert is_whole(here)

    def test_after_a_repair_places_come_to_rest(self, here, there):
        """Not one more merge with every pull and push."""
        put(here, 0, 8)
        put(here, 8, 20)
        bring(here, there)
        give_up(here, 1)
        for _ in range(3):
            bring(there, here)
            bring(here, there)
        assert newest(here).commit.tree == newest(there).commit.tree
        assert newest(here).commit.number <= 4
        assert held(here) == held(there) == expected(range(20))

    def test_a_merge_may_come_out_as_what_the_source_had_before(self, here, there):
        """The remote lost its merge; the source closed the holes that the merge had brought."""
        put(here, 0, 6, 4)
        put(there, 4, 5, 4)
        bring(here, there)
        bring(there, here)
        merged = tree(here)
        there.remove(Cache(there, ID).log.path(2))
        compact(Cache(here, ID))
        bring(here, there)
        assert tree(there) == merged
        assert not stand(here, there).ahead
        bring(there, here)
        assert stand(here, there).equal
        assert held(here) == held(there) == expected(range(6))

    def test_places_that_name_one_another_as_merged_come_to_rest(self, here, there):
        put(here, 0, 6, 4)
        put(there, 3, 6, 4)
        put(there, 0, 3, 4)
        trees = {here: tree(here), there: tree(there)}
        for one, other in ((here, there), (there, here)):
            last = newest(one).commit
            follows = {"number": last.number + 1, "parent": last.digest}
            assert Cache(one, ID).log.append(replace(last, **follows, merged=[trees[other]]))
        bring(here, there)
        bring(there, here)
        assert stand(here, there).equal
        assert held(here) == held(there) == expected(range(6))

    def test_a_push_may_take_longer_than_gc_lets_objects_be(self, here, there, monkeypatch):
        """What was copied first is looked at again, before a commit relies on it."""
        put(here, 0, 40)
        real, asked = there.refresh, []
        monkeypatch.setattr("rapidin_storage.sync._SMALL", 0)
        monkeypatch.setattr("rapidin_storage.sync.FRESH", 0.0)
        monkeypatch.setattr(
            type(there), "refresh", lambda _, *details: asked.append(details) or real(*details)
        )
        monkeypatch.setattr("rapidin_storage.sync._ATTEMPTS", 2)
        with pytest.raises(ConflictError):
            bring(here, there)  # here every copy takes too long
        assert len(asked) == 2 * len(set(asked))
        monkeypatch.setattr("rapidin_storage.sync.FRESH", FRESH)
        bring(here, there)
        assert held(there) == expected(range(40))

    def test_what_only_the_target_has_need_not_be_copied(self, here, there, third):
        """The bulk was dropped here, and there the holes were closed."""
        put(third, 0, 3)
        put(here, 10, 13)
        bring(third, there)
        bring(here, there)
        bring(there, here)
        drop_local(here, there, [ID], remove=True)
        compact(Cache(there, ID))
        more = CacheWriter(Cache(here, ID, [there]), ARRAYS, {"made": "for a test"}, 8)
        more.add(rows(20, 30))
        more.commit()
        bring(here, there)
        assert held(there) == expected([*range(3), *range(10, 13), *range(20, 30)])
        assert is_whole(there)

    def test_a_chunk_of_holes_merges_into_nothing(self, here, there):
        put(here, 0, 8)
        put(here, 8, 16)
        give_up(here, 1)
        put(there, 0, 8)
        put(there, 20, 28)
        bring(here, there)
        assert held(there) == expected([*range(8), *range(20, 28)])
        bring(there, here)
        assert held(here) == held(there)

    def test_another_ones_commit_is_not_taken_for_a_lost_one(self, here, there):
        """It has the number and the parent of the lost one, but other rows."""
        put(here, 0, 8)
        bring(here, there)
        put(here, 8, 16)
        put(there, 16, 24)
        log = Cache(here, ID).log
        here.write(log.path(2), b"{")
        done = repair(Cache(here, ID), verify(Cache(here, ID), [there]).problems, [there])
        assert (done.fetched, done.given_up) == (0, 1)
        assert held(here) == expected(range(8))
        assert is_whole(here)
        bring(there, here)
        assert held(here) == expected([*range(8), *range(16, 24)])

    # Reading through

    def test_what_is_read_from_a_remote_is_verified_and_kept(self, here, there):
        ref = ObjectStore(there).put(b"some bytes")
        assert ObjectStore(here, [there], keep=False).get(ref) == b"some bytes"
        assert objects(here) == set()
        assert ObjectStore(here, [there]).get(ref) == b"some bytes"
        assert here.read(object_path(ref.digest)) == b"some bytes"
        lose(there, ref)
        assert ObjectStore(here, [there]).get(ref) == b"some bytes"

    @pytest.mark.parametrize("bad", [b"same bytes", b"some byte", b"some bytes and more", b""])
    def test_corrupt_bytes_of_a_remote_are_neither_served_nor_kept(self, here, there, bad):
        ref = ObjectStore(there).put(b"some bytes")
        there.write(object_path(ref.digest), bad)
        with pytest.raises(CorruptError, match=f"row 3 is corrupt.*{ref.digest} in {there.url}"):
            ObjectStore(here, [there]).get(ref, "row 3")
        assert objects(here) == set()

    def test_what_nobody_has_is_missing_in_all_that_were_asked(self, here, there, third):
        ref = ObjectRef("0" * 64, 1)
        with pytest.raises(NotFoundError) as refused:
            ObjectStore(here, [third, there]).get(ref, "row 3")
        assert "row 3 is missing" in str(refused.value)
        for root in (here, third, there):
            assert root.url in str(refused.value)

    def relieved(self, here, there):
        """`here` after `rin gc --local`: the bulk is only there."""
        put(here, 0, 8)
        put(here, 8, 20)
        bring(here, there)
        planned = drop_local(here, there, [ID], remove=False)
        assert is_whole(here)
        assert drop_local(here, there, [ID], remove=True) == planned
        return planned

    def test_dropping_keeps_manifests_metadata_and_digests(self, here, there):
        dropped = self.relieved(here, there)
        assert dropped.objects == 2 * 3  # sketch and loss of three chunks
        assert newest(here).index.keys() == expected(range(20)).keys()
        assert newest(here).attributes == {"made": "for a test"}
        kept = {
            part.ref.digest
            for commit in Cache(here, ID).log.read_all()
            for part in parts(ObjectStore(here), commit)
            if part.array in (PAGE, GROUP, "digest")
        }
        assert objects(here) == kept
        assert dropped.size > 0
        verdict = verify(Cache(here, ID), [there])
        assert (verdict.problems, verdict.elsewhere) == ([], 6)

    def test_only_what_the_remote_has_in_full_is_dropped(self, here, there):
        put(here, 0, 16)
        bring(here, there)
        gone, cut = chunks(here)[0]["loss"], chunks(here)[1]["sketch"]
        lose(there, gone)
        there.write(object_path(cut.digest), b"x")
        drop_local(here, there, [ID], remove=True)
        assert {gone.digest, cut.digest} <= objects(here)
        assert chunks(here)[0]["sketch"].digest not in objects(here)

    def test_what_the_remote_holds_as_garbage_is_not_dropped(self, here, there, third):
        """A merge may lay a chunk anew: what was copied for it then waits there for gc."""
        put(third, 0, 12)
        put(here, 20, 25)
        bring(third, there)
        assert bring(here, there).merged
        drop_local(here, there, [ID], remove=True)
        remove_garbage(there, find_garbage(there, EVERYTHING))
        verdict = verify(Cache(here, ID), [there])
        assert verdict.problems == []

    def test_a_place_is_not_relieved_by_itself(self, there, tmp_path):
        put(there, 0, 8)
        alias = there
        if not there.shared:
            (tmp_path / "alias").symlink_to(there.folder)
            alias = open_root(tmp_path / "alias")
        with pytest.raises(StorageError, match="are the same: nothing"):
            drop_local(there, alias, [ID], remove=True)
        assert is_whole(there)

    def test_a_pull_refills_what_was_dropped(self, here, there):
        dropped = self.relieved(here, there)
        assert bring(there, here).commits == 0
        assert not is_whole(here)
        tally = Tally()
        assert bring(there, here, tally, refill=True).commits == 0
        assert tally.copied == dropped.objects
        assert is_whole(here)
        assert held(here) == expected(range(20))

    def test_what_was_dropped_is_read_through(self, here, there):
        self.relieved(here, there)
        with pytest.raises(NotFoundError, match="loss/c/"):
            held(here)
        snapshot = Cache(here, ID, [there]).snapshot()
        assert contents(snapshot) == expected(range(20))
        assert held(here) == expected(range(20))  # the losses were kept

    def test_a_writer_goes_on_where_the_bulk_was_dropped(self, here, there):
        self.relieved(here, there)
        mine = CacheWriter(Cache(here, ID, [there]), ARRAYS, {}, 8)
        mine.add(rows(15, 30))
        mine.commit()
        bring(here, there)
        assert held(there) == expected(range(30))
        assert is_whole(there)

    def test_a_store_without_its_bulk_is_pushed_on_through_its_remote(self, here, there, third):
        self.relieved(here, there)
        synchronise(Cache(here, ID, [there]), Cache(third, ID))
        assert held(third) == expected(range(20))
        assert is_whole(third)

    # Garbage

    def test_only_what_is_old_and_unnamed_is_garbage(self, there):
        put(there, 0, 8)
        put(there, 8, 20)
        other = CacheWriter(Cache(there, cache_name({"another": 1})), ARRAYS, {"made": "too"}, 8)
        other.add(rows(50, 60))
        other.commit()
        needed = objects(there)
        stray = ObjectStore(there).put(b"stray")

        garbage = find_garbage(there)
        assert (list(garbage.entries), garbage.young) == ([], 1)
        assert remove_garbage(there, garbage) == 0
        assert objects(there) == needed | {stray.digest}

        garbage = find_garbage(there, EVERYTHING)
        assert [entry.path for entry in garbage.entries] == [object_path(stray.digest)]
        assert (garbage.size, garbage.young) == (stray.size, 0)
        assert remove_garbage(there, garbage) == stray.size
        assert remove_garbage(there, garbage) == 0
        assert objects(there) == needed
        assert held(there, 1) == expected(range(8))
        assert find_garbage(there, EVERYTHING).entries == []

    def test_chunks_that_wait_for_their_commit_are_spared(self, there):
        mine = writer(there)
        mine.add(rows(0, 20))
        assert objects(there)
        remove_garbage(there, find_garbage(there))
        assert contents(mine.commit()) == expected(range(20))

    def test_what_is_committed_between_finding_and_removing_stays(self, there):
        mine = writer(there)
        mine.add(rows(0, 16))
        garbage = find_garbage(there, EVERYTHING)
        assert len(garbage.entries) == 6
        mine.commit()
        assert remove_garbage(there, garbage) == 0
        assert held(there) == expected(range(16))
        assert is_whole(there)

    def test_what_is_written_again_between_finding_and_removing_stays(self, there):
        put(there, 0, 4)
        store = ObjectStore(there)
        again, stray = store.put(b"again"), store.put(b"stray")
        time.sleep(self.tick)
        garbage = find_garbage(there, 0.0)
        assert garbage.size == again.size + stray.size
        store.put(b"again")
        assert remove_garbage(there, garbage) == stray.size
        assert store.get(again) == b"again"

    def test_a_commit_after_a_long_pause_stores_its_chunks_again(self, there, monkeypatch):
        """Longer than gc's grace: what it had stored is gone by then."""
        mine = writer(there)
        mine.add(rows(0, 20))
        remove_garbage(there, find_garbage(there, EVERYTHING))
        now = time.time()
        monkeypatch.setattr("rapidin_storage.writer.time.time", lambda: now + FRESH + 1)
        assert contents(mine.commit()) == expected(range(20))
        assert is_whole(there)

    @pytest.mark.parametrize("what", ["corrupt page", "missing page", "corrupt commit"])
    def test_without_knowing_all_that_is_named_nothing_is_removed(self, there, what):
        put(there, 0, 8)
        snapshot = put(there, 8, 16)
        ObjectStore(there).put(b"stray")
        found = find_garbage(there, EVERYTHING)
        page = object_path(snapshot.commit.pages[0].digest)
        if what == "missing page":
            there.remove(page)
        else:
            there.write(page if what == "corrupt page" else Cache(there, ID).log.path(1), b"{")
        before = objects(there)
        error = NotFoundError if what == "missing page" else CorruptError
        with pytest.raises(error):
            find_garbage(there, EVERYTHING)
        with pytest.raises(error):
            remove_garbage(there, found)
        assert objects(there) == before

    def test_files_of_others_and_probes(self, there):
        put(there, 0, 8)
        for path in ("objects/sha256/README", "objects/sha256.bak/ab/notes", "notes"):
            there.write(path, b"mine")
        there.write("probes/left", b"by one that died")
        assert [entry.path for entry in find_garbage(there, EVERYTHING).entries] == ["probes/left"]

    def test_where_there_is_no_store_there_is_no_garbage(self, there):
        with pytest.raises(NotFoundError, match="no store"):
            find_garbage(there)

    # Export

    def test_an_export_holds_the_same_arrays(self, there, tmp_path):
        put(there, 0, 20)
        put(there, 20, 30)
        told = []
        size = export_zarr(newest(there), tmp_path / "new/rows.zarr", told.append)
        files = [p for p in (tmp_path / "new/rows.zarr").rglob("*") if p.is_file()]
        assert size == sum(told) == sum(p.stat().st_size for p in files)
        group = zarr.open_group(tmp_path / "new/rows.zarr", mode="r")
        assert dict(group.attrs) == {"made": "for a test"}
        assert sorted(group.array_keys()) == ["digest", "loss", "sketch"]
        for name, values in newest(there).read(0, 30, ["digest", "loss", "sketch"]).items():
            np.testing.assert_array_equal(group[name][:], values)
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["rows.zarr"]

    @pytest.mark.parametrize("how", ["corrupt", "missing"])
    def test_an_export_that_fails_leaves_nothing_behind(self, there, tmp_path, how):
        put(there, 0, 20)
        ref = chunks(there)[2]["loss"]
        if how == "corrupt":
            there.write(object_path(ref.digest), b"x" * ref.size)
        else:
            lose(there, ref)
        with pytest.raises(CorruptError if how == "corrupt" else NotFoundError, match="loss/c/2"):
            export_zarr(newest(there), tmp_path / "new" / "rows.zarr")
        assert list(tmp_path.glob("new/*")) == []
        assert list(tmp_path.glob("new/.*")) == []


class TestLocal(SyncContract):
    @pytest.fixture
    def there(self, tmp_path):
        return open_root(tmp_path / "there")

    def test_files_of_writers_that_died_go_after_the_grace(self, there):
        put(there, 0, 8)
        left = [
            there.folder / name
            for name in (f"{OBJECTS}/00/.tmp-abc", f"caches/{ID}/log/.tmp-abc", "objects/.tmp-x")
        ]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        garbage = find_garbage(there)
        assert (list(garbage.entries), garbage.young) == ([], 3)
        for path in left:
            os.utime(path, (0, 0))
        assert remove_garbage(there, find_garbage(there)) == 12
        assert not any(path.exists() for path in left)
        assert is_whole(there)


class TestMemory(SyncContract):
    @pytest.fixture
    def there(self):
        return open_root(f"memory://{uuid.uuid4().hex}")


class TestS3(SyncContract):
    tick = 1.1  # S3 tells the time in whole seconds

    @pytest.fixture
    def there(self, s3_server):
        return open_root(f"s3://caches/{uuid.uuid4().hex}", endpoint_url=s3_server.endpoint)


READER = """
import sys
for name in ("rapidin_storage", "rapidin_cli", "torch"):
    sys.modules[name] = None  # cannot be imported
import numpy, zarr
group = zarr.open_group(sys.argv[1], mode="r")
numpy.savez(sys.argv[2], **{name: group[name][:] for name in group.array_keys()})
"""


def test_an_export_needs_nothing_of_ours(here, tmp_path):
    put(here, 0, 30)
    export_zarr(newest(here), tmp_path / "rows.zarr")
    run = [sys.executable, "-I", "-c", READER, tmp_path / "rows.zarr", tmp_path / "rows.npz"]
    subprocess.run(run, check=True, cwd=tmp_path)
    with np.load(tmp_path / "rows.npz") as found:
        assert sorted(found.files) == ["digest", "loss", "sketch"]
        for name, values in rows(0, 30).items():
            np.testing.assert_array_equal(found[name], values)


def test_an_export_replaces_nothing(here, tmp_path):
    put(here, 0, 8)
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    for taken in (folder, file):
        with pytest.raises(StorageError, match=f"{taken} already exists"):
            export_zarr(newest(here), taken)
    with pytest.raises(StorageError, match="cannot write"):
        export_zarr(newest(here), file / "below")
    assert list(folder.iterdir()) == []
    assert file.read_text() == "mine"


def test_an_old_snapshot_can_be_exported(here, tmp_path):
    put(here, 0, 8)
    put(here, 8, 20)
    export_zarr(Cache(here, ID).snapshot(1), tmp_path / "old.zarr")
    assert zarr.open_group(tmp_path / "old.zarr", mode="r")["loss"][:].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("90m", 5400), ("24h", 86400), ("7d", 604800), ("0s", 0)]
)
def test_a_grace_is_a_number_and_a_unit(text, seconds):
    assert parse_grace(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "24", "-1h", "1.5h", "1 h", "1w", "h24"])
def test_other_graces_are_refused(text):
    with pytest.raises(StorageError, match="is not a duration"):
        parse_grace(text)
