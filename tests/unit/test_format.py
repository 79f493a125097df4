"""The written format: a cache of the first version stays readable, FORMAT.md stays true."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rapidin_storage import Cache, CacheWriter, FormatError, list_caches, open_root
from rapidin_storage.compact import compact
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.manifest import PAGE_CHUNKS
from rapidin_storage.roots import FORMAT_FILE, FRESH, GRACE
from rapidin_storage.verify import verify
from tests.data.make_store_v1 import ARRAYS, rows

STORE = Path(__file__).parents[1] / "data/store-v1"
EXPECTED = json.loads((STORE / "expected.json").read_text())
FORMAT = (Path(__file__).parents[2] / "storage/FORMAT.md").read_text(encoding="utf-8")


def cache(folder):
    return Cache(open_root(folder), EXPECTED["cache"])


@pytest.fixture
def copied(tmp_path):
    return cache(shutil.copytree(STORE / "root", tmp_path / "root"))


def check_rows(snapshot, count):
    """Every row is what its number says, and there are no others."""
    assert snapshot.commit.rows == len(snapshot.index) == count
    numbers = {int.from_bytes(d, "big") - 1: slot for d, slot in snapshot.index.items()}
    assert sorted(numbers) == list(range(count))
    slots = [numbers[n] for n in range(count)]
    stored = snapshot.read(0, snapshot.commit.slots, sorted(ARRAYS))
    for name, values in rows(0, count).items():
        if name != "digest":
            assert np.array_equal(stored[name][slots], values), name


def test_every_snapshot_of_a_version_1_store_reads_as_it_was_written():
    """In place: reading needs no permission to write."""
    assert list_caches(open_root(STORE / "root")) == [EXPECTED["cache"]]
    kept = cache(STORE / "root")
    for number, (commit, count) in enumerate(
        zip(EXPECTED["commits"], EXPECTED["rows"], strict=True), 1
    ):
        snapshot = kept.snapshot(number)
        assert (snapshot.commit.digest, snapshot.commit.tree) == (commit["digest"], commit["tree"])
        assert snapshot.commit.slots == commit["slots"]
        check_rows(snapshot, count)
        assert snapshot.attributes == {"rin": {"made": "for store-v1"}}
    assert kept.snapshot(5).commit.merged
    assert verify(kept).problems == []


def test_a_version_1_store_can_be_continued(copied):
    writer = CacheWriter(copied, ARRAYS, {}, 8)
    writer.add(rows(30, 60))
    check_rows(writer.commit(), 60)
    assert compact(copied).after == 60
    check_rows(copied.snapshot(), 60)
    assert compact(copied) is None
    assert verify(copied).problems == []
    for number, count in enumerate(EXPECTED["rows"], 1):
        check_rows(copied.snapshot(number), count)
    # What writers left who were overtaken when the store was made.
    assert remove_garbage(copied.root, find_garbage(copied.root, grace=-60)) > 0
    assert verify(copied).problems == []


def test_compaction_says_what_it_would_do_first(copied):
    done = compact(copied, write=False)
    assert (done.before, done.after) == (54, 40)
    assert copied.log.numbers() == [1, 2, 3, 4, 5]


def test_a_writer_goes_on_after_a_compaction(copied):
    writer = CacheWriter(copied, ARRAYS, {}, 8)
    writer.add(rows(40, 43))
    compact(copied)
    check_rows(writer.commit(), 43)


def test_a_newer_store_is_refused_by_name(copied):
    copied.root.write(FORMAT_FILE, b'{"format": "rapidin-store", "version": 2}')
    with pytest.raises(FormatError, match="format 2; this program reads up to 1"):
        CacheWriter(copied, ARRAYS, {}, 8)
    path = copied.log.path(5)
    body = json.loads(copied.root.read(path))
    copied.root.write(path, json.dumps({**body, "format": 2}).encode())
    with pytest.raises(FormatError, match="newer rin"):
        copied.snapshot()


def test_the_format_document_names_every_key_of_a_commit():
    body = json.loads(cache(STORE / "root").snapshot().commit.encode())
    table = re.search(r"## Commits\n(.*?)\n## ", FORMAT, re.DOTALL).group(1)
    described = set(re.findall(r"`([a-z_]+)`", table))
    assert set(body) <= described
    written = (STORE / "root" / FORMAT_FILE).read_text().strip()
    assert written in FORMAT


def test_the_numbers_in_the_format_document_are_the_program_s():
    assert f"{PAGE_CHUNKS} consecutive chunks" in FORMAT
    assert f"{FRESH / 3600:.0f} hours" in FORMAT
    assert f"{GRACE / 3600:.0f}\nhours" in FORMAT
