"""The output layer of a model that is a decoder and an output layer, one after the other.

Logits are the largest tensors by far, and several copies of them are needed at once: they are made
of labelled tokens only, and a few tokens at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.gradients.capture.uses import Part
from rapidin_cli.gradients.capture.watching import Capture, Perturbation
from rapidin_cli.gradients.capture.wide import Softmax, WordsSide

# Numbers of the logits that are computed at once.
_LOGITS = {"cpu": 2**21, "cuda": 2**27}


@dataclass(frozen=True)
class Above:
    """What both passes above the decoder found of n labelled tokens.

    Attributes:
        hidden: (n, H), what the decoder says of them.
        gradients: (n, H), of the weighted loss by that.
        losses: (n,) nats.
        logs, targets, factors: (n,), see `Softmax`.
        counts: tokens of each sequence.
    """

    hidden: torch.Tensor
    gradients: torch.Tensor
    losses: torch.Tensor
    logs: torch.Tensor
    targets: torch.Tensor
    factors: torch.Tensor
    counts: list[int]

    def token(self, number: int) -> Above:
        """One token of a single sequence."""
        some = slice(number, number + 1)
        return Above(
            self.hidden[some],
            self.gradients[some],
            self.losses[some],
            self.logs[some],
            self.targets[some],
            self.factors[some],
            [1],
        )


@dataclass(frozen=True)
class OutputLayer:
    """A decoder and an output layer.

    Attributes:
        decoder, head: the modules.
        vocabulary: words that the head knows.
        autocast: what the model runs under.
        number: of the head's weight among the targets; None if it is none.
    """

    decoder: nn.Module
    head: nn.Module
    vocabulary: int
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    number: int | None = None

    def above(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        factors: torch.Tensor | None,
        sampler: torch.Generator | None,
    ) -> Above:
        """Run the decoder, and above it both passes.

        Args:
            factors: (n,) of the tokens' losses; ones when None.
            sampler: draws other labels from the predictions.
        """
        hidden, targets, counts = self._ends(ids, labels)
        factors = torch.ones(len(targets), device=ids.device) if factors is None else factors
        losses, logs = torch.empty_like(factors), torch.empty_like(factors)
        gradients = torch.empty_like(hidden)
        for part in self._parts(len(targets)):
            leaf = hidden[part].detach().requires_grad_()
            with self.autocast():
                logits = self.head(leaf)
            logits = logits.float()
            targets[part] = drawn(logits, targets[part], sampler)
            loss = F.cross_entropy(logits, targets[part], reduction="none")
            gradients[part] = torch.autograd.grad((loss * factors[part]).sum(), leaf)[0]
            losses[part] = loss.detach()
            logs[part] = losses[part] + logits.detach().gather(1, targets[part, None])[:, 0]
        return Above(hidden, gradients, losses, logs, targets, factors, counts)

    def capture(self, capture: Capture, found: Above) -> None:
        """Hand over the output layer's own gradient, if it is a target."""
        if self.number is None:
            return
        parts = found.hidden.detach(), found.logs, found.targets, found.factors
        hidden, logs, targets, factors = (
            nn.utils.rnn.pad_sequence(part.split(found.counts), batch_first=True) for part in parts
        )
        weight: torch.Tensor = self.head.weight.detach()  # type: ignore[operator]
        dense = Softmax(hidden, weight, logs, targets, factors, self._logits)
        capture.take(self.number, Part(hidden, WordsSide(len(weight), dense)))

    def _logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return F.linear(hidden, weight)

    def losses(
        self, ids: torch.Tensor, labels: torch.Tensor, perturb: Perturbation
    ) -> Iterator[torch.Tensor]:
        """Yield the losses of all labelled tokens, in reading order, a few of them at a time.

        Args:
            perturb: changes the outputs of targets, as in `Passes.tangents`.
        """
        hidden, targets, counts = self._ends(ids, labels)
        first = 0
        for row, count in enumerate(counts):
            for part in self._parts(count):
                tokens = slice(first + part.start, first + min(part.stop, count))
                with self.autocast():
                    logits = self.head(hidden[tokens])
                if self.number is not None:
                    logits = self._perturbed(logits, hidden[tokens], perturb, row, len(counts))
                yield F.cross_entropy(logits.float(), targets[tokens], reduction="none")
            first += count

    def _perturbed(
        self,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        perturb: Perturbation,
        row: int,
        rows: int,
    ) -> torch.Tensor:
        """Add the change of the output layer's weight, of one of the sequences."""
        assert self.number is not None
        known = forward_ad.unpack_dual(hidden).primal
        change = perturb(self.number, known[None], row if rows > 1 else None)[0].to(logits.dtype)
        before = forward_ad.unpack_dual(logits)
        if before.tangent is not None:
            change = before.tangent + change
        changed: torch.Tensor = forward_ad.make_dual(before.primal, change)
        return changed

    def _ends(
        self, ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """What the decoder says of labelled tokens (n, H), the tokens, and how many a sequence."""
        wanted = labels[:, 1:] != IGNORED
        with self.autocast():
            hidden = self.decoder(input_ids=ids, use_cache=False)[0][:, :-1][wanted]
        return hidden, labels[:, 1:][wanted], wanted.sum(1).tolist()

    def _parts(self, count: int) -> Iterator[slice]:
        """Cut tokens into as many as are looked at at once."""
        device = next(self.head.parameters()).device.type
        size = max(1, _LOGITS[device] // self.vocabulary)
        for first in range(0, count, size):
            yield slice(first, first + size)


def drawn(
    logits: torch.Tensor, targets: torch.Tensor, sampler: torch.Generator | None
) -> torch.Tensor:
    """Return the targets; with a sampler, others, drawn from the predictions."""
    if sampler is None:
        return targets
    return torch.multinomial(logits.detach().softmax(1), 1, generator=sampler)[:, 0]
