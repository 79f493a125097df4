"""Unlearning: a few steps uphill on some rows, and what that does to others.

UnTrac and its inverse (Isonuma & Titov, "Unlearning Traces the Influential Training Data of
Language Models", ACL 2024): a row has mattered to a query if the query's loss rises as the row is
unlearnt, or the row's loss as the query is. No second model, no curvature and no cached row is
needed, and no training either, which is what it cannot stand for: the weights of now are pushed,
and nothing is learnt in the place of what was unlearnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from rapidin_cli.data.examples import Example
from rapidin_cli.evaluation.training import losses
from rapidin_cli.gradients.passes import as_batch

# Examples of a forward and backward pass.
_TOGETHER = 4


@dataclass(frozen=True)
class Ascent:
    """How to unlearn: by the signs of the gradient, which need no state, as Adam's first steps are.

    Attributes:
        steps: how many.
        rate: what each weight moves in a step.
    """

    steps: int = 3
    rate: float = 1e-4


class Unlearner:
    """Unlearns examples on a model, looks at others, and puts the model back as it was.

    Args:
        model: whose parameters that require a gradient are moved.
    """

    def __init__(self, model: nn.Module, ascent: Ascent) -> None:
        self._model = model.eval()
        self._ascent = ascent
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._kept = [p.detach().clone() for p in self._trained]

    def rises(self, unlearnt: Sequence[Example], others: Sequence[Example]) -> list[float]:
        """Return how far the others' losses rise as these are unlearnt, nats each."""
        before = losses(self._model, others, _TOGETHER)
        try:
            for _ in range(self._ascent.steps):
                self._step(unlearnt)
            after = losses(self._model, others, _TOGETHER)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._trained, self._kept, strict=True):
                    parameter.copy_(value)
        return [b - a for a, b in zip(before, after, strict=True)]

    def _step(self, unlearnt: Sequence[Example]) -> None:
        for first in range(0, len(unlearnt), _TOGETHER):
            batch = as_batch(unlearnt[first : first + _TOGETHER])
            device = self._trained[0].device
            logits = self._model(input_ids=batch.input_ids.to(device), use_cache=False).logits
            labels = batch.labels[:, 1:].flatten().to(device)
            F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum"
            ).backward()
        with torch.no_grad():
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=self._ascent.rate)
                    parameter.grad = None
