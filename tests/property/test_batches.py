import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rapidin_cli.data import examples as module
from rapidin_cli.data.examples import Example, plan_batches
from rapidin_cli.data.rows import Row

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def make(sizes: list[int]) -> list[Example]:
    row = Row("f", 1, "i", "", "")
    return [
        Example(row, np.full(size, n, np.int32), np.full(size, n, np.int32))
        for n, size in enumerate(sizes)
    ]


@given(lengths, st.integers(1, 100))
def test_every_missing_example_is_planned_once_within_the_budget(sizes, budget):
    examples = make(sizes)
    batches = plan_batches([*examples, *examples], [], budget)
    planned = [example.digest for batch in batches for example in batch]
    assert sorted(planned) == sorted(example.digest for example in examples)
    for batch in batches:
        longest = max(len(example.input_ids) for example in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(lengths, st.integers(1, 100), st.data())
def test_after_an_interruption_the_same_batches_come_again(sizes, budget, data):
    """Batches are committed in order, so what is missing is an end of the plan."""
    window, module._WINDOW_ROWS = module._WINDOW_ROWS, 7
    try:
        examples = make(sizes)
        batches = plan_batches(examples, [], budget)
        done = data.draw(st.integers(0, len(batches)))
        digests = [example.digest for batch in batches[:done] for example in batch]
        again = plan_batches(examples, digests, budget)
    finally:
        module._WINDOW_ROWS = window
    names = [[example.digest for example in batch] for batch in again]
    assert names == [[example.digest for example in batch] for batch in batches[done:]]
