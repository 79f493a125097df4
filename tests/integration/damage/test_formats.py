"""A mangled format file, files of others, and references that lie."""

import pytest

from rapidin_storage import Cache, CorruptError, FormatError, ObjectRef, ObjectStore
from rapidin_storage.gc import find_garbage, remove_garbage
from rapidin_storage.objects import object_path
from tests.support.damage import EVERY, NAMES, OBJECTS, everything, flipped, newest, only, problems
from tests.support.stored import ID, rows, writer

FORMATS = {
    "empty": b"",
    "half": b'{"format": "rapidin-st',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b"\xff\xff",
    "deep": b"[" * 4096,
    "large": b" " * 10**6 + b"{}",
    "another program's": b'{"format": "zarr", "version": 1}',
    "newer": b'{"format": "rapidin-store", "version": 2}',
    "a version in words": b'{"format": "rapidin-store", "version": "1"}',
    "a true version": b'{"format": "rapidin-store", "version": true}',
    "no version": b'{"format": "rapidin-store"}',
    "a huge version": b'{"format": "rapidin-store", "version": ' + b"9" * 4000 + b"}",
}


@pytest.mark.parametrize("how", FORMATS)
def test_a_mangled_format_file_stops_whoever_writes_or_cleans(root, how):
    (root.folder / "format.json").write_bytes(FORMATS[how])
    for attempt in (root.check_format, lambda: writer(root), lambda: find_garbage(root)):
        with pytest.raises((FormatError, CorruptError)) as refused:
            attempt()
        meant = how in ("another program's", "newer")
        assert type(refused.value) is (FormatError if meant else CorruptError)
        assert root.url in str(refused.value)
        assert len(str(refused.value)) < 500
    assert Cache(root, ID).log.numbers() == [1, 2, 3]


def test_files_of_others_among_the_caches_are_left_alone(root):
    """What file managers and synchronising programs leave behind is no damage."""
    for name in ("caches/.DS_Store", f"caches/{ID}/log/Thumbs.db", "objects/sha256/.DS_Store"):
        (root.folder / name).write_bytes(b"mine")
    assert everything(root) == only(EVERY)
    assert problems(root) == []
    remove_garbage(root, find_garbage(root, -3600))
    assert everything(root) == only(EVERY)
    assert (root.folder / "caches/.DS_Store").read_bytes() == b"mine"


def test_a_read_that_ends_in_an_error_may_be_repeated(root):
    """Nothing of it is remembered: after a repair the same snapshot reads on."""
    ref = OBJECTS["loss"](root)
    path = root.folder / object_path(ref.digest)
    good = path.read_bytes()
    snapshot = newest(root)
    path.write_bytes(flipped(good, 3))
    with pytest.raises(CorruptError):
        snapshot.read(0, 48, NAMES)
    path.write_bytes(good)
    assert snapshot.read(0, 48, ["loss"])["loss"].tolist() == rows(0, 48)["loss"].tolist()


def test_a_reference_with_another_size_is_refused(root):
    ref = OBJECTS["loss"](root)
    store = ObjectStore(root)
    for size in (0, ref.size - 1, ref.size + 1, 2**47):
        with pytest.raises(CorruptError, match=ref.digest):
            store.get(ObjectRef(ref.digest, size))
