"""What a hostile writer left costs no memory, no time and no wrong row."""

import functools
import shutil

import pytest

from rapidin_storage import open_root
from tests.support.damage import log_file
from tests.support.hostile import HARMLESS, HOSTILE, TOLERABLE
from tests.support.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox(pristine):
    made = Sandbox()
    made.look(open_root(pristine))
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(sandbox, pristine, tmp_path_factory):
    """Case -> what each operation saw; every case is tried once."""

    @functools.cache
    def see(case):
        folder = tmp_path_factory.mktemp("hostile") / "store"
        root = open_root(shutil.copytree(pristine, folder))
        (HOSTILE | TOLERABLE | HARMLESS)[case](root)
        return sandbox.look(root)

    return see


@pytest.mark.parametrize("case", HOSTILE | TOLERABLE)
def test_what_is_hostile_is_refused_by_a_sentence(seen, case):
    found = seen(case)
    others = {n: v for n, v in found.items() if isinstance(v, dict) and not v["ours"]}
    assert others == {}
    assert "wrong" not in found.values()
    assert found["old"] == "right"
    read = found["read"]
    if read != "right" or case in HOSTILE:
        names = ("commit 4 of cache", "snapshot 4", "@4", "object ", "page 0 (")
        assert any(name in read["text"] for name in names), read
        assert len(read["text"]) < 500


@pytest.mark.parametrize("case", HOSTILE | TOLERABLE)
def test_what_cannot_be_read_is_a_problem_to_verify(seen, case):
    """Else `rin retrieve` would send people to a `rin verify` that finds nothing."""
    found = seen(case)
    assert found["verify"] != [] or (found["read"], found["index"]) == ("right", "right")


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_harmless_is_read(seen, case):
    found = seen(case)
    assert (found["read"], found["index"], found["verify"]) == ("right", "right", [])


def test_a_commit_with_an_absurd_number_costs_nothing(root, sandbox):
    """Only its name is absurd; what lies between is not counted one by one."""
    shutil.copy(log_file(root, 3), log_file(root, 99_999_999))
    found = sandbox.look(root)
    assert found["read"]["type"] == "CorruptError"
    assert "commit 99999999 of cache" in found["read"]["text"]
    messages = found["verify"]
    assert isinstance(messages, list), messages
    assert any("commit 99999999 of cache" in message for message in messages)
    assert len(messages) < 10
