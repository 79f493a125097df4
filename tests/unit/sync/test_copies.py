"""Push and pull: what is missing is copied, and logs that went apart are merged."""

import numpy as np
import pytest

from rapidin_storage import Cache, CorruptError, NotFoundError, StorageError
from rapidin_storage.objects import object_path
from rapidin_storage.sync import Synced
from tests.support.stored import ID, contents, digest, expected, rows, writer
from tests.support.syncing import (
    Tally,
    at_once,
    bring,
    chunks,
    held,
    is_whole,
    lose,
    newest,
    objects,
    put,
    stand,
    tree,
)


class TestCopies:
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
