"""What gc removes, and what it spares; exports."""

import time

import numpy as np
import pytest
import zarr

from rapidin_storage import Cache, CacheWriter, CorruptError, NotFoundError, ObjectStore, cache_name
from rapidin_storage.export import export_zarr
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.objects import object_path
from rapidin_storage.roots import FRESH
from tests.support.stored import ARRAYS, ID, contents, expected, rows, writer
from tests.support.syncing import EVERYTHING, chunks, held, is_whole, lose, newest, objects, put


class TestGarbage:
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

    def test_what_is_written_again_between_finding_and_removing_stays(self, there, tick):
        put(there, 0, 4)
        store = ObjectStore(there)
        again, stray = store.put(b"again"), store.put(b"stray")
        time.sleep(tick)
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
