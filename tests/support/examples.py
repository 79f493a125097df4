"""Examples of several lengths, questions, and their gradients by ordinary parameters."""

import numpy as np
import torch

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.rows import Row
from rapidin_cli.gradients.capture.targets import find_targets
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.influence.queries import Query
from tests.support import tiny
from tests.support.oracle import gathered, trained_by

MODELS = {
    "llama": tiny.llama,
    "gpt2 (Conv1D)": tiny.gpt2,
    "lora": lambda: tiny.lora(tiny.llama()),
}


def example(seed: int, length: int, prompt: int = 3) -> Example:
    torch.manual_seed(seed)
    ids = torch.randint(1, 300, (length,)).numpy().astype("int32")
    labels = ids.copy()
    labels[:prompt] = IGNORED
    return Example(Row("", seed, str(seed), "", ""), ids, labels)


EXAMPLES = [example(n, length) for n, length in enumerate([9, 30, 6, 14, 11])]

QUERY = Query("q", "given", example(50, 10, 4))

CONTRAST = Query("q", "given", example(50, 10, 4), example(51, 8, 4))


def plain_gradients(model: torch.nn.Module, item: Example) -> list[torch.Tensor]:
    """The gradients of an example's loss by one backward pass through ordinary parameters."""
    targets = find_targets(model, "")[0]
    batch = as_batch([item])
    logits = model(input_ids=batch.input_ids).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits, batch.labels[0, 1:], reduction="sum", ignore_index=IGNORED
    )
    return gathered(targets, torch.autograd.grad(loss, trained_by(targets)))


def one_token_queries(query: Example) -> list[Example]:
    """Split a query into one example per explained token, each cut after that token.

    Their gradients add up to the query's, and causal attention makes the cut free.
    """
    parts = []
    for position in np.flatnonzero(query.learnt_mask):
        labels = np.full(position + 1, IGNORED, dtype=np.int32)
        labels[position] = query.labels[position]
        parts.append(query.with_tokens(query.input_ids[: position + 1], labels))
    return parts
