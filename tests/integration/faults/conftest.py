"""A server and folders that the cases share, and all cases of a module at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.faulty import Bench


@pytest.fixture(scope="module")
def bench(s3_server, tmp_path_factory, cached_project):
    return Bench(s3_server, tmp_path_factory.mktemp("faults"), cached_project)


@pytest.fixture(scope="module")
def ended(bench, request):
    """Start all cases that were selected; the result waits for one, and raises its failure."""
    cases = {
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and "case" in getattr(item, "callspec", _Nothing).params
    }
    with ThreadPoolExecutor(40) as pool:
        futures = {
            case: pool.submit(case.run, bench, bench.place()) for case in sorted(cases, key=str)
        }
        yield lambda case: futures[case].result()


class _Nothing:
    params = ()
