"""What one place does alone: exports, graces, leftovers of writers that died."""

import os
import subprocess
import sys

import numpy as np
import pytest
import zarr

from rapidin_storage import Cache, StorageError
from rapidin_storage.export import export_zarr
from rapidin_storage.gc import find_garbage, parse_grace, remove_garbage
from rapidin_storage.objects import OBJECTS
from tests.support.stored import ID, rows
from tests.support.syncing import is_whole, newest, put

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


def test_files_of_writers_that_died_go_after_the_grace(here):
    put(here, 0, 8)
    left = [
        here.folder / name
        for name in (f"{OBJECTS}/00/.tmp-abc", f"caches/{ID}/log/.tmp-abc", "objects/.tmp-x")
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    garbage = find_garbage(here)
    assert (list(garbage.entries), garbage.young) == ([], 3)
    for path in left:
        os.utime(path, (0, 0))
    assert remove_garbage(here, find_garbage(here)) == 12
    assert not any(path.exists() for path in left)
    assert is_whole(here)
