"""The shortlist grows by those whom the sketches' own error leaves in doubt."""

import numpy as np
import pytest

from rapidin_cli.influence.ranking import Ranked, extremes
from rapidin_cli.influence.shortlist import doubtful, fit

TOP, FIRST = 20, 40


def sketched(totals, sizes):
    totals, sizes = np.float32(totals), np.float32(sizes)
    return Ranked(totals, sizes, np.empty(0, np.int64), np.empty((0, 1), np.float32))


def grown(found, exact):
    """Let the shortlist grow for as long as it wants to."""
    slots = extremes(found.totals[:, None], FIRST, 0)
    while len(more := doubtful(found, slots, exact[slots], TOP)[:FIRST]):
        assert not np.isin(more, slots).any()
        slots = np.concatenate([slots, more])
    return slots


@pytest.mark.parametrize(("noise", "enough"), [(0.05, True), (0.6, False)])
def test_growing_finds_the_true_best_without_scoring_everything(noise, enough):
    generator = np.random.default_rng(0)
    count = 5000
    sizes = generator.lognormal(0, 0.5, count)
    exact = generator.standard_t(5, count) * sizes
    found = sketched(exact + noise * sizes * generator.standard_normal(count), sizes)
    slots = grown(found, exact)
    first = extremes(found.totals[:, None], FIRST, 0)
    best = extremes(exact[:, None], TOP, 0)
    assert np.isin(best, first).all() == enough
    assert np.isin(best, slots).all()
    assert len(slots) == len(first) if enough else len(first) < len(slots) < count / 5


def test_an_example_is_in_doubt_by_its_own_size():
    """Equal sketched totals, but only the larger gradient can hide so large an error."""
    exact = np.array([5.0, 4.0, -4.0, -5.0])
    found = sketched([5.1, 3.9, -4.1, -4.9, 3.6, 3.6, 0.0], [1, 1, 1, 1, 0.1, 3, 3])
    assert doubtful(found, np.arange(4), exact, 2).tolist() == [5]


def test_one_factor_makes_signs_comparable():
    """Signs shorten, or lengthen, all products alike; the largest gradients err most."""
    generator = np.random.default_rng(0)
    sizes = generator.lognormal(0, 1, 4000)
    exact = sizes * generator.standard_normal(4000)
    noise = 0.02 * sizes * generator.standard_normal(4000)
    found = sketched(0.6 * (exact + noise), sizes)
    slots = extremes(found.totals[:, None], 100, 0)
    better = found.times(fit(found, slots, exact[slots]))
    np.testing.assert_allclose(better.totals, exact + noise, rtol=0.02)
    assert len(doubtful(found, slots, exact[slots], 20)) < 20
    assert fit(found, slots, -exact[slots]) == 1, "no factor fits"


def test_the_likeliest_come_first():
    exact = np.array([5.0, 4.0, -4.0, -5.0])
    found = sketched([5.1, 3.9, -4.1, -4.9, 3.8, 3.95, -3.9], np.ones(7))
    assert doubtful(found, np.arange(4), exact, 2).tolist() == [5, 6, 4]


def test_rows_that_say_the_truth_leave_no_doubt():
    totals = np.array([5.0, 4.0, 1.0, 0.5, -4.0, -5.0])
    found = sketched(totals, np.ones(6))
    slots = np.array([0, 1, 4, 5])
    assert doubtful(found, slots, totals[slots], 2).tolist() == []
    # Unless it is the sketches that put a better one outside: then there is no error to trust.
    slots = np.array([1, 2, 4, 5])
    assert doubtful(found, slots, totals[slots], 2).tolist() == [0]


def test_uncached_examples_and_empty_gradients_are_never_in_doubt():
    found = sketched([5.5, 4.0, -4.0, -5.5, np.nan, 0.0], [1, 1, 1, 1, 0, 0])
    slots, exact = np.arange(4), np.array([5.0, 4.0, -4.0, -5.0])
    assert doubtful(found, slots, exact, 1).tolist() == []
    everything = sketched([np.nan, np.nan], [0, 0])
    assert doubtful(everything, np.array([], np.int64), np.array([]), 5).tolist() == []
