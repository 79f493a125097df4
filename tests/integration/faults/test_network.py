"""A service or a network that fails: a retry, or one sentence; nothing is lost."""

import pytest

from rapidin_storage import Cache, StorageError, open_root
from rapidin_storage.repair import repair
from rapidin_storage.verify import verify
from tests.support.faults import Fault, FaultProxy, always, first
from tests.support.faulty import AFTER, READING, REQUESTS, WRITING, Case, upload, whole
from tests.support.stored import ID, expected

PASSING = [
    *(Case("write", fault, "PUT object", 2) for fault in WRITING),
    *(Case("write", fault, "PUT commit", 2) for fault in WRITING),
    *(Case("push", fault, "PUT object", 2) for fault in (Fault.RESET, Fault.LOST_REPLY)),
    *(Case("push", fault, "PUT commit", 2) for fault in (Fault.ERROR_500, Fault.LOST_REPLY)),
    *(Case("pull", fault, "GET object", 2) for fault in READING),
    *(Case("pull", fault, "GET commit", 2) for fault in READING),
    *(Case("read", fault, "GET object", 2) for fault in READING),
    # What happens on the way there.
    Case("write", Fault.LOST_REPLY, "PUT commit", 1),
    Case("write", Fault.ERROR_500, "GET list", 2),
    Case("write", Fault.TRUNCATE, "GET list", 2),
    Case("write", Fault.TRUNCATE, "GET format", 2),
    Case("write", Fault.RESET, "PUT probe", 2),
    Case("write", Fault.LOST_REPLY, "PUT probe", 1),
    Case("write", Fault.LOST_REPLY, "DELETE probe", 1),
    Case("look", Fault.SLOW_DOWN, "HEAD object", 2),
    Case("push", Fault.SLOW_DOWN, "any", 2),
]

STAYING = [
    *(Case("write", fault, "PUT object") for fault in WRITING),
    *(Case("write", fault, "PUT commit") for fault in (Fault.ERROR_500, Fault.LOST_REPLY)),
    *(Case("write", fault, "GET list") for fault in (Fault.ERROR_500, Fault.TRUNCATE)),
    *(Case("push", fault, "PUT object") for fault in (Fault.RESET, Fault.ERROR_500)),
    Case("push", Fault.LOST_REPLY, "PUT commit"),
    Case("look", Fault.ERROR_500, "HEAD object"),
    Case("push", Fault.RESET, "any"),
    *(Case("pull", fault, "GET object") for fault in (Fault.RESET, Fault.TRUNCATE, Fault.FLIP)),
    *(Case("pull", fault, "GET commit") for fault in (Fault.TRUNCATE, Fault.FLIP)),
    *(Case("read", fault, "GET object") for fault in READING),
]


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_a_fault_that_passes_ends_in_success(case, ended):
    ended(case)


@pytest.mark.parametrize("case", STAYING, ids=str)
def test_a_fault_that_stays_ends_in_one_sentence(case, ended):
    ended(case)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_what_flips_on_the_wire_is_not_lost_on_the_remote(bench, count):
    """A repair must not remove there what only arrived here damaged."""
    place = bench.place()
    upload(bench.full, place)
    match = REQUESTS["GET object"]
    with FaultProxy(bench.server.endpoint, first(count, Fault.FLIP, match)) as proxy:
        cache = Cache(open_root(place.url, endpoint_url=proxy.endpoint), ID)
        found = verify(cache).problems
        proxy.fault = lambda _: None
        if found:
            repair(cache, found, [])
    assert whole(place) == expected(range(AFTER))
    assert Cache(place, ID).log.numbers() == [1, 2]


def test_a_service_that_fails_during_a_repair_costs_nothing(bench):
    place = bench.place()
    upload(bench.full, place)
    before = {entry.path for entry in place.entries("objects")}
    match = REQUESTS["GET object"]
    with FaultProxy(bench.server.endpoint, always(Fault.FLIP, match)) as proxy:
        cache = Cache(open_root(place.url, endpoint_url=proxy.endpoint), ID)
        found = verify(cache).problems
        assert found
        proxy.fault = always(Fault.ERROR_500, match)
        with pytest.raises(StorageError, match="InternalError"):
            repair(cache, found, [])
    assert {entry.path for entry in place.entries("objects")} == before
    assert whole(place) == expected(range(AFTER))
