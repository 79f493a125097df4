"""Reading through, and dropping here what a remote holds."""

import pytest

from rapidin_storage import (
    Cache,
    CacheWriter,
    CorruptError,
    NotFoundError,
    ObjectRef,
    ObjectStore,
    StorageError,
    open_root,
)
from rapidin_storage.contents import GROUP, PAGE, parts
from rapidin_storage.gc import drop_local, find_garbage, remove_garbage
from rapidin_storage.objects import object_path
from rapidin_storage.sync import synchronise
from rapidin_storage.verify import verify
from tests.support.stored import ARRAYS, ID, contents, expected, rows
from tests.support.syncing import (
    EVERYTHING,
    Tally,
    bring,
    chunks,
    held,
    is_whole,
    lose,
    newest,
    objects,
    put,
)


class TestBulk:
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
