"""One contract for every kind of root, and attempts to break its promises."""

import json
import threading
import uuid

import numpy as np
import pytest
import zarr

from rapidin_storage import (
    ArraySpec,
    Cache,
    CacheStore,
    CacheWriter,
    ConflictError,
    CorruptError,
    FormatError,
    NotFoundError,
    ObjectRef,
    ObjectStore,
    StorageError,
    list_caches,
    open_root,
)
from rapidin_storage.manifest import PAGE_CHUNKS, Manifest
from rapidin_storage.objects import object_path
from tests.support.stored import ID, contents, digest, expected, rows, writer


class RootContract:
    """What every root must do; a subclass gives `root`."""

    def test_a_new_root_is_empty(self, root):
        assert root.list("caches") == []
        assert root.size("nothing") is None
        with pytest.raises(NotFoundError):
            root.read("nothing")
        with pytest.raises(NotFoundError):
            root.check_format()

    def test_write_replaces_and_create_does_not(self, root):
        root.write("a/b", b"one")
        root.write("a/b", b"two")
        assert root.read("a/b") == b"two"
        assert root.size("a/b") == 3
        assert not root.create("a/b", b"three")
        assert root.create("a/c", b"four")
        assert root.list("a") == ["b", "c"]
        root.remove("a/b")
        root.remove("a/b")
        assert root.list("a") == ["c"]

    rounds = 20

    def test_of_racing_creators_one_wins(self, root):
        root.check_exclusive()
        for number in range(self.rounds):
            barrier = threading.Barrier(8)
            won = []

            def race(me, number=number, barrier=barrier, won=won):
                barrier.wait()
                if root.create(f"race/{number}", str(me).encode()):
                    won.append(me)

            threads = [threading.Thread(target=race, args=(me,)) for me in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert root.read(f"race/{number}") == str(won[0]).encode()

    @pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\\b", "a\0b"])
    def test_paths_outside_are_refused(self, root, path):
        with pytest.raises(StorageError):
            root.write(path, b"")

    def test_objects_are_named_by_their_bytes_and_verified(self, root):
        store = ObjectStore(root)
        ref = store.put(b"hello")
        assert store.put(b"hello") == ref
        assert store.get(ref) == b"hello"
        root.write(object_path(ref.digest), b"jello")
        with pytest.raises(CorruptError, match=ref.digest):
            store.get(ref, "row 3")
        root.write(object_path(ref.digest), b"hell")
        with pytest.raises(CorruptError, match="4 bytes instead of 5"):
            store.get(ref)
        root.remove(object_path(ref.digest))
        with pytest.raises(NotFoundError, match="row 3 is missing"):
            store.get(ref, "row 3")

    def test_rows_are_there_after_the_commit_and_not_before(self, root):
        first = writer(root)
        assert Cache(root, ID).snapshot() is None
        first.add(rows(0, 20))
        assert Cache(root, ID).snapshot() is None
        snapshot = first.commit()
        assert contents(Cache(root, ID).snapshot()) == expected(range(20))
        assert snapshot.commit.number == 1
        assert list_caches(root) == [ID]

    def test_appending_refills_the_tail_and_keeps_old_snapshots(self, root):
        first = writer(root)
        first.add(rows(0, 5))
        first.commit()
        first.add(rows(5, 11))
        first.commit()
        later = writer(root)
        assert later.add(rows(3, 30)) == 19  # those it has are left out
        snapshot = later.commit()
        assert contents(snapshot) == expected(range(30))
        assert snapshot.commit.slots == 30  # no hole
        assert contents(Cache(root, ID).snapshot(1)) == expected(range(5))
        assert contents(Cache(root, ID).snapshot(2)) == expected(range(11))

    def test_rows_of_zeros_are_rows(self, root):
        first = writer(root)
        nothing = {name: np.zeros_like(values) for name, values in rows(0, 3).items()}
        first.add({**nothing, "digest": rows(0, 3)["digest"]})
        assert contents(first.commit()) == {digest(n): 0.0 for n in range(3)}

    def test_nothing_new_makes_no_commit(self, root):
        first = writer(root)
        first.add(rows(0, 5))
        first.commit()
        again = writer(root)
        assert again.add(rows(0, 5)) == 0
        assert again.commit().commit.number == 1

    def test_the_loser_of_a_race_is_rebased(self, root):
        base = writer(root)
        base.add(rows(0, 5))
        base.commit()
        one, two = writer(root), writer(root)
        one.add(rows(5, 30))
        two.add(rows(20, 47))
        one.commit()
        snapshot = two.commit()
        assert snapshot.commit.number == 3
        assert contents(snapshot) == expected(range(47))
        assert snapshot.commit.rows == 47
        filled = snapshot.digests.any(axis=1)
        assert len(filled) == snapshot.commit.slots > 47  # holes, which read as absent
        two.add(rows(47, 60))
        one.add(rows(60, 66))
        two.commit()
        assert contents(one.commit()) == expected(range(66))

    def test_rows_that_two_writers_add_are_there_once(self, root):
        """Also when the loser goes on filling a tail that nobody else touched."""
        one = writer(root)
        one.add(rows(0, 3))
        one.commit()
        two = writer(root)
        two.add(rows(3, 30))
        two.commit()
        one.add(rows(100, 102))  # into its own tail, which two has filled by now
        one.commit()
        three = writer(root)
        three.add(rows(200, 202))
        one.add(rows(200, 204))
        three.commit()
        snapshot = one.commit()
        everything = [*range(30), *range(100, 102), *range(200, 204)]
        assert contents(snapshot) == expected(everything)
        assert snapshot.commit.rows == len(everything)
        assert int(snapshot.digests.any(axis=1).sum()) == len(everything)

    def test_eight_writers_lose_nothing(self, root):
        def work(me):
            mine = writer(root)
            for number in range(5):
                start = me * 50 + number * 10
                mine.add(rows(start, start + 10))
                mine.commit()

        threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        snapshot = Cache(root, ID).snapshot()
        assert contents(snapshot) == expected(range(400))
        assert Cache(root, ID).log.numbers() == list(range(1, 41))

    def test_a_plain_zarr_reader_sees_the_cache(self, root):
        first = writer(root)
        first.add(rows(0, 20))
        store = CacheStore.at(first.commit())
        group = zarr.open_group(store, mode="r")
        assert group.attrs["made"] == "for a test"
        assert group["sketch"].shape == (20, 16)
        assert group["sketch"][13].tolist() == [13] * 16
        assert group["sketch"][5:11, 3].tolist() == [5, 6, 7, 8, 9, 10]
        assert sorted(group.array_keys()) == ["digest", "loss", "sketch"]
        with pytest.raises(ValueError, match="read-only"):
            group["loss"][0] = 1
        assert store == CacheStore.at(Cache(root, ID).snapshot(1))

    def test_corruption_is_named_and_never_served(self, root):
        first = writer(root)
        first.add(rows(0, 20))
        snapshot = first.commit()
        ref = snapshot.manifest.chunk(1)["loss"]
        root.write(object_path(ref.digest), b"x" * ref.size)
        fresh = Cache(root, ID).snapshot()
        assert fresh.read(0, 8, ["loss"])["loss"].tolist() == list(range(8))
        with pytest.raises(CorruptError, match=r"loss/c/1 .*" + ref.digest):
            fresh.read(8, 16, ["loss"])

    def test_a_mangled_log_is_named(self, root):
        first = writer(root)
        first.add(rows(0, 3))
        first.commit()
        path = f"caches/{ID}/log/00000001.json"
        good = json.loads(root.read(path))
        for change in (
            {"slots": -1},
            {"slots": 2**60},
            {"chunk_rows": 0},
            {"rows": 99},
            {"cache": "0" * 64},
            {"metadata": {"../zarr.json": ["0" * 64, 1]}},
            {"metadata": {"/etc/passwd": ["0" * 64, 1]}},
            {"pages": [["../../etc", 1]]},
            {"pages": [["0" * 64, 2**60]]},
        ):
            root.write(path, json.dumps({**good, **change}).encode())
            with pytest.raises(CorruptError, match="commit 1 of cache"):
                Cache(root, ID).snapshot()
        root.write(path, b"{")
        with pytest.raises(CorruptError):
            Cache(root, ID).snapshot()
        root.write(path, json.dumps({**good, "format": 99}).encode())
        with pytest.raises(FormatError, match="newer"):
            Cache(root, ID).snapshot()

    def test_a_newer_or_foreign_store_is_refused(self, root):
        root.write("format.json", b'{"format": "rapidin-store", "version": 2}')
        with pytest.raises(FormatError, match="format 2"):
            writer(root)
        root.write("format.json", b'{"format": "something", "version": 1}')
        with pytest.raises(FormatError, match="does not describe"):
            writer(root)
        root.write("format.json", b"{")
        with pytest.raises(CorruptError, match="not readable"):
            writer(root)

    def test_rows_of_the_wrong_kind_are_refused(self, root):
        first = writer(root)
        for bad in (
            {k: v for k, v in rows(0, 3).items() if k != "loss"},
            {**rows(0, 3), "loss": np.zeros(2, np.float32)},
            {**rows(0, 3), "loss": np.zeros(3, np.float64)},
            {**rows(0, 3), "digest": np.zeros((3, 32), np.uint8)},
        ):
            with pytest.raises(StorageError):
                first.add(bad)
        first.add(rows(0, 3))
        first.commit()
        with pytest.raises(StorageError, match="different arrays"):
            CacheWriter(Cache(root, ID), {"sketch": ArraySpec("int8", (8,))}, {}, 8)

    def test_commits_share_their_pages(self, root):
        store = ObjectStore(root)
        ref = ObjectRef("0" * 64, 1)
        empty = Manifest(store, [], 0, {"a"})
        first = empty.with_chunks({n: {"a": ref} for n in range(PAGE_CHUNKS + 5)})
        other = ObjectRef("1" * 64, 1)
        second = first.with_chunks({PAGE_CHUNKS + 5: {"a": other}})
        assert second.pages[0] == first.pages[0]
        assert second.pages[1] != first.pages[1]
        fresh = Manifest(store, second.pages, second.chunk_count, {"a"})
        assert fresh.chunk(PAGE_CHUNKS + 5) == {"a": other}
        assert fresh.chunk(3) == {"a": ref}
        with pytest.raises(StorageError, match="without objects"):
            second.with_chunks({PAGE_CHUNKS + 9: {"a": ref}})


class TestLocal(RootContract):
    @pytest.fixture
    def root(self, tmp_path):
        return open_root(tmp_path / "store")

    def test_no_temporary_file_stays(self, root, tmp_path):
        first = writer(root)
        first.add(rows(0, 20))
        first.commit()
        assert not root.create("format.json", b"")
        assert [p for p in tmp_path.rglob("*") if p.name.startswith(".tmp-")] == []

    def test_an_unwritable_place_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="file"):
            writer(open_root(tmp_path / "file" / "store"))

    def test_files_follow_the_umask(self, root, tmp_path):
        root.write("a", b"")
        (tmp_path / "plain").touch()
        assert (tmp_path / "store/a").stat().st_mode == (tmp_path / "plain").stat().st_mode


class TestMemory(RootContract):
    @pytest.fixture
    def root(self):
        return open_root(f"memory://{uuid.uuid4().hex}")


class TestS3(RootContract):
    rounds = 2  # SeaweedFS lets the losers of a race wait for seconds

    @pytest.fixture
    def root(self, s3_server):
        return open_root(f"s3://caches/{uuid.uuid4().hex}", endpoint_url=s3_server.endpoint)


def test_a_lost_reply_is_recognised(tmp_path, monkeypatch):
    """The create succeeded, but its answer got lost and the retry found the name taken."""
    root = open_root(tmp_path)
    first = writer(root)
    first.add(rows(0, 3))
    create = type(root).create
    monkeypatch.setattr(type(root), "create", lambda *a: create(*a) and False)
    assert first.commit().commit.number == 1
    assert Cache(root, ID).log.numbers() == [1]


def test_a_writer_that_never_wins_says_so(tmp_path, monkeypatch):
    root = open_root(tmp_path)
    base = writer(root)
    base.add(rows(0, 3))
    base.commit()
    loser = writer(root)
    loser.add(rows(3, 6))
    monkeypatch.setattr("rapidin_storage.writer.time.sleep", lambda _: None)
    monkeypatch.setattr("rapidin_storage.commits.CommitLog.append", lambda *_: False)
    with pytest.raises(ConflictError):
        loser.commit()
    assert loser.new_rows == 3
