"""Reports of other versions are refused with what they lack."""

import copy

import pytest

from rapidin_cli.report.schema import lacking
from tests.support.browser import make_report


def test_a_whole_report_lacks_nothing():
    assert lacking(make_report()) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), "layers"),
        (("provenance",), "command"),
        (("queries", 0), "words"),
        (("queries", 0, "exact"), "doubtful"),
        (("queries", 0, "distribution"), "shares"),
        (("queries", 1, "examples", 2), "layers"),
        (("queries", 0, "examples", 3, "rows", 0), "line"),
    ],
)
def test_what_an_older_report_lacks_is_named(path, name):
    report = copy.deepcopy(make_report())
    part = report
    for step in path:
        part = part[step]
    del part[name]
    place = lacking(report)
    assert place is not None
    assert place.endswith(name)
    assert all(str(step) in place for step in path)


@pytest.mark.parametrize("value", [None, [], "report", {"schema": "rin.report/1"}])
def test_anything_else_is_no_report(value):
    assert lacking(value) is not None
