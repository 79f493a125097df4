"""Roots over a network: what they ask for, and what they refuse."""

import time
import uuid
from dataclasses import replace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rapidin_cli.setup.doctor import probes
from rapidin_storage import Cache, ObjectStore, Snapshot, StorageError, open_root
from rapidin_storage.arrays import array_documents
from rapidin_storage.manifest import Manifest
from rapidin_storage.roots import FRESH
from rapidin_storage.sync import synchronise
from tests.support.faults import FaultProxy
from tests.support.stored import ID, contents, expected, rows, writer


class Careless(MemoryFileSystem):
    """A service that knows no conditional writes."""

    protocol = "careless"
    store = {}  # noqa: RUF012 (as in fsspec)
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        del mode
        return super().pipe_file(path, value, mode="overwrite", **kwargs)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("careless://"))


@pytest.fixture
def careless():
    fsspec.register_implementation("careless", Careless, clobber=True)
    return f"careless://{uuid.uuid4().hex}"


def test_a_place_where_two_writers_can_win_is_refused(careless, tmp_path):
    root = open_root(careless, name="nas")
    with pytest.raises(StorageError, match="3 of 3 writers create the same file"):
        writer(root)
    local = writer(open_root(tmp_path))
    local.add(rows(0, 5))
    local.commit()
    with pytest.raises(StorageError, match="would be lost there"):
        synchronise(Cache(open_root(tmp_path), ID), Cache(root, ID))
    assert Cache(root, ID).log.numbers() == []
    findings = {check.name: check for check in probes("remote nas", root)}
    assert not findings["remote nas: concurrent writers"].ok
    assert "single_writer" in findings["remote nas: concurrent writers"].next


def test_a_single_writer_may_use_it(careless):
    root = open_root(careless, single_writer=True)
    only = writer(root)
    only.add(rows(0, 5))
    assert contents(only.commit()) == expected(range(5))


def test_what_was_written_long_ago_counts_as_absent(monkeypatch):
    """So it is written again before it is relied on: gc may be about to remove it."""
    root = open_root(f"memory://{uuid.uuid4().hex}")
    root.write("a", b"12345")
    assert root.refresh("a", 5)
    assert not root.refresh("a", 4)
    assert not root.refresh("b", 5)
    entry = root.entry("a")
    monkeypatch.setattr("rapidin_storage.remote.time.time", lambda: entry.modified + FRESH + 1)
    assert not root.refresh("a", 5)


def test_what_is_old_on_s3_is_made_fresh_without_being_sent_again(s3_server, monkeypatch):
    place = f"s3://caches/{uuid.uuid4().hex}"
    with FaultProxy(s3_server.endpoint) as proxy:
        root = open_root(place, endpoint_url=proxy.endpoint)
        root.write("a", b"12345")
        before = root.entry("a")
        time.sleep(1.1)  # S3 tells times in seconds
        monkeypatch.setattr("rapidin_storage.remote.FRESH", -3600.0)  # all is old
        sent = len(proxy.requests)
        assert root.refresh("a", 5)
        assert root.entry("a").modified > before.modified
        assert root.read("a") == b"12345"
        assert len(proxy.requests) - sent <= 6
        root.remove("a")
        assert not root.refresh("a", 5)


def many_chunks(root, count):
    """A cache of `count` chunks that share their objects."""
    first = writer(root, chunk_rows=2)
    first.add(rows(0, 2))
    commit = first.commit().commit
    empty = Manifest(ObjectStore(root), [], 0, set(commit.arrays))
    refs = commit.manifest(ObjectStore(root)).chunk(0)
    return replace(
        commit,
        number=2,
        parent=commit.digest,
        slots=2 * count,
        arrays=array_documents(commit.specs, 2 * count, 2),
        pages=empty.with_chunks(dict.fromkeys(range(count), refs)).pages,
    )


def test_one_row_of_10_000_chunks_takes_three_requests_beyond_the_log(s3_server):
    place = f"s3://caches/{uuid.uuid4().hex}"
    root = open_root(place, endpoint_url=s3_server.endpoint)
    assert Cache(root, ID).log.append(many_chunks(root, 10_000))
    with FaultProxy(s3_server.endpoint) as proxy:
        seen = Cache(open_root(place, endpoint_url=proxy.endpoint), ID).snapshot()
        log = len(proxy.requests)
        assert log == 2  # the listing, and the newest commit
        assert seen.read(19_998, 20_000, ["loss"])["loss"].tolist() == [0.0, 1.0]
        assert len(proxy.requests) - log <= 3, proxy.requests


def test_a_commit_costs_what_it_changed(s3_server):
    """Not what the cache holds: no request for the 9,990 chunks that stay."""
    place = f"s3://caches/{uuid.uuid4().hex}"
    root = open_root(place, endpoint_url=s3_server.endpoint)
    big = many_chunks(root, 10_000)
    with FaultProxy(s3_server.endpoint) as proxy:
        objects = ObjectStore(open_root(place, endpoint_url=proxy.endpoint))
        base = Snapshot(objects, big)
        base.manifest.with_chunks({10_000: base.manifest.chunk(9_999)})
        assert len(proxy.requests) <= 3, proxy.requests
