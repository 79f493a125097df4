"""What the terminal report says."""

import pytest

from rapidin_cli.report.terminal import words_told


@pytest.mark.parametrize(("percentile", "named"), [(0.5, False), (55.0, True), (99.5, False)])
def test_a_match_by_words_that_lowers_is_not_called_without_influence(percentile, named):
    match = {"id": "row-7", "percentile": percentile, "bm25": 9.0, "score": -5.0, "digest": ""}
    told = str(words_told({"of": 10, "agree": 4, "matches": [match]}))
    assert ("row-7" in told) == named
