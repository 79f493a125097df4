"""A store that was damaged: what was in it, what is, and how it is mended."""

from rapidin_storage import Cache
from rapidin_storage.objects import object_path
from rapidin_storage.repair import repair
from rapidin_storage.verify import verify
from tests.support.stored import ARRAYS, ID, rows, writer

CHUNK = 8

COMMITS = (20, 24, 48)  # rows after each commit; the tail of the first is refilled by the second

EVERY = range(COMMITS[-1])

NAMES = [*ARRAYS, "digest"]


def only(numbers):
    """Digest -> the stored bytes of the rows of those numbers."""
    every = rows(0, COMMITS[-1])
    return {
        every["digest"][n].tobytes(): (every["sketch"][n].tobytes(), every["loss"][n].tobytes())
        for n in numbers
    }


def everything(root, number=None):
    """Digest -> stored bytes of every row of a snapshot, read anew."""
    snapshot = Cache(root, ID).snapshot(number)
    values = snapshot.read(0, snapshot.commit.slots, [*ARRAYS])
    return {
        digest: (values["sketch"][slot].tobytes(), values["loss"][slot].tobytes())
        for digest, slot in snapshot.index.items()
    }


def files(root):
    """Path -> bytes of all that belongs to the store."""
    return {
        str(path.relative_to(root.folder)): path.read_bytes()
        for path in root.folder.rglob("*")
        if path.is_file()
    }


def problems(root, *upstreams):
    return verify(Cache(root, ID), upstreams).problems


def mend(root, *upstreams):
    """Repair until nothing is left, as `rin verify --repair` does; return what was done."""
    cache, done = Cache(root, ID), []
    while left := verify(cache, upstreams).problems:
        assert len(done) < 4, left
        done.append(repair(cache, left, upstreams))
    return done


def add_again(root, expected):
    """Add all rows once more, of which so many must be new."""
    again = writer(root)
    assert again.add(rows(0, COMMITS[-1])) == expected
    again.commit()


def newest(root):
    return Cache(root, ID).snapshot()


OBJECTS = {
    "sketch": lambda root: newest(root).manifest.chunk(1)["sketch"],
    "loss": lambda root: newest(root).manifest.chunk(1)["loss"],
    "digest": lambda root: newest(root).manifest.chunk(1)["digest"],
    "page": lambda root: newest(root).commit.pages[0],
    "group": lambda root: newest(root).commit.group,
}

READ_AS = {
    "sketch": "sketch/c/1/0 ",
    "loss": "loss/c/1 ",
    "digest": "digest/c/1/0 ",
    "page": "manifest page 0 ",
    "group": "zarr.json ",
}

CHECKED_AS = {
    **{name: f"{name} of rows 8 to 15 of snapshot 3" for name in NAMES},
    "page": "manifest page 0 of snapshot 3",
    "group": "the group metadata of snapshot",
}


def flipped(data, position, bit=0):
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


DAMAGES = {
    "first bit": lambda data: flipped(data, 0),
    "middle bit": lambda data: flipped(data, len(data) // 2, 4),
    "last bit": lambda data: flipped(data, len(data) - 1, 7),
    "truncated": lambda data: data[:-1],
    "lengthened": lambda data: data * 1000,
    "emptied": lambda _: b"",
    "deleted": lambda _: None,
}


def damage(root, ref, how):
    path = root.folder / object_path(ref.digest)
    data = DAMAGES[how](path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def log_file(root, number):
    return root.folder / Cache(root, ID).log.path(number)
