"""Push and pull of stores that gave something up, or were changed meanwhile."""

from dataclasses import replace

import pytest

from rapidin_storage import Cache, CacheWriter, ConflictError
from rapidin_storage.compact import compact
from rapidin_storage.gc import drop_local, find_garbage, remove_garbage
from rapidin_storage.repair import repair
from rapidin_storage.roots import FRESH
from rapidin_storage.verify import verify
from tests.support.stored import ARRAYS, ID, expected, rows
from tests.support.syncing import (
    EVERYTHING,
    bring,
    chunks,
    give_up,
    held,
    is_whole,
    newest,
    objects,
    put,
    stand,
    tree,
)


class TestLosses:
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
