"""A signal may come between any two lines: what a writer commits afterwards is whole."""

import sys

import pytest

from rapidin_storage import ArraySpec, Cache, CacheWriter, StorageError, open_root
from rapidin_storage.verify import verify
from tests.support.stored import ID, contents, expected, rows, writer


class Signal(BaseException):
    """What a signal handler raises."""


def interrupt_after(lines):
    """Raise `Signal` in the n-th line that the writer's module runs from now on."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        del argument
        if not frame.f_code.co_filename.endswith("rapidin_storage/writer.py"):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Signal
        return trace

    sys.settrace(trace)


def work(one):
    for start in range(3, 30, 9):
        one.add(rows(start, start + 9))
    one.commit()


@pytest.mark.parametrize("lines", range(1, 700, 9))
def test_what_is_committed_after_an_interruption_is_whole(tmp_path, lines):
    """As `rin cache` does: whatever ends the run, what was finished is committed."""
    root = open_root(tmp_path)
    first = writer(root)
    first.add(rows(0, 3))
    first.commit()
    one = writer(root)
    before = sys.gettrace()
    try:
        interrupt_after(lines)
        work(one)
    except Signal:
        pass
    finally:
        sys.settrace(before)
    one.commit()
    snapshot = Cache(root, ID).snapshot()
    found = contents(snapshot)
    assert len(found) == snapshot.commit.rows
    assert found.items() <= expected(range(30)).items()
    assert verify(Cache(root, ID)).problems == []
    again = writer(root)
    again.add(rows(0, 30))
    assert contents(again.commit()) == expected(range(30))


def test_rows_of_a_store_that_failed_can_be_added_again(tmp_path, monkeypatch):
    one = writer(open_root(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(one, "_store", lambda _: (_ for _ in ()).throw(StorageError("full")))
        with pytest.raises(StorageError, match="full"):
            one.add(rows(0, 32))
    one.add(rows(0, 32))
    assert contents(one.commit()) == expected(range(32))


def test_of_two_first_writers_with_other_arrays_one_is_refused(tmp_path):
    one, other = (
        CacheWriter(Cache(open_root(tmp_path), ID), {"sketch": ArraySpec("int8", (size,))}, {}, 8)
        for size in (4, 8)
    )
    for size, each in ((4, one), (8, other)):
        some = rows(size, size + 3)
        each.add({"sketch": some["sketch"][:, :size], "digest": some["digest"]})
    one.commit()
    with pytest.raises(StorageError, match="different arrays"):
        other.commit()
    assert verify(Cache(open_root(tmp_path), ID)).problems == []
