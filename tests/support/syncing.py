"""Two or three places with a cache, and what is in them."""

import threading
from contextlib import contextmanager

from rapidin_storage import Cache
from rapidin_storage.objects import OBJECTS, object_path
from rapidin_storage.repair import repair
from rapidin_storage.sync import compare, synchronise
from rapidin_storage.verify import verify
from tests.support.stored import ID, contents, rows, writer

EVERYTHING = -3600.0
"""A grace that makes everything old: what was written up to an hour from now."""


def put(root, start, stop, chunk_rows=8):
    one = writer(root, chunk_rows)
    one.add(rows(start, stop))
    return one.commit()


def newest(root):
    return Cache(root, ID).snapshot()


def held(root, number=None):
    return contents(Cache(root, ID).snapshot(number))


def tree(root):
    return newest(root).commit.tree


def bring(source, target, progress=None, **options):
    return synchronise(Cache(source, ID), Cache(target, ID), progress, **options)


def stand(source, target):
    return compare(Cache(source, ID), Cache(target, ID))


def objects(root):
    return {entry.path.rpartition("/")[2] for entry in root.entries(OBJECTS)}


def chunks(root):
    manifest = newest(root).manifest
    return [dict(manifest.chunk(index)) for index in range(manifest.chunk_count)]


def lose(root, ref):
    root.remove(object_path(ref.digest))


def give_up(root, chunk, how="missing"):
    """Lose a chunk that nobody else has; return the object."""
    ref = newest(root).manifest.chunk(chunk)["loss"]
    if how == "missing":
        lose(root, ref)
    else:
        root.write(object_path(ref.digest), b"x" * ref.size)
    repair(Cache(root, ID), verify(Cache(root, ID)).problems, [])
    return ref


def is_whole(root):
    """Every snapshot can be read, from this place alone."""
    verdict = verify(Cache(root, ID))
    return (verdict.problems, verdict.elsewhere) == ([], 0)


class Tally:
    """Counts what a transfer tells."""

    def __init__(self):
        self.objects = self.size = self.copied = self.present = 0
        self.lock = threading.Lock()

    def start(self, objects, size):
        self.objects += objects
        self.size += size

    def advance(self, size, *, copied):
        with self.lock:
            self.size -= size
            self.copied += copied
            self.present += not copied


@contextmanager
def at_once(*work):
    """Do all of it in threads that start together; their errors are raised."""
    barrier, errors = threading.Barrier(len(work)), []

    def run(one):
        barrier.wait()
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()
    assert errors == []
