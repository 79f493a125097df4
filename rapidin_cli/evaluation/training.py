"""The built-in trainer: fine-tunes on part of the data, the same way every time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.gradients.passes import as_batch


@dataclass(frozen=True)
class Training:
    """How to fine-tune: AdamW, a linear rise and fall of the learning rate, clipping at 1.

    Attributes:
        epochs: passes over the data.
        batch_rows: rows of a step.
        learning_rate: the highest.
        warmup: share of the steps over which it rises.
        seed: of the order of the rows.
    """

    epochs: int = 3
    batch_rows: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.05
    seed: int = 0


def fine_tune(
    model: nn.Module,
    examples: Sequence[Example],
    settings: Training,
    after_epoch: Callable[[int, torch.optim.Optimizer], None] = lambda *_: None,
) -> list[float]:
    """Train the parameters of a model that require a gradient, in place, without dropout.

    Two runs on overlapping data see their common rows in the same order, so that their
    difference is due to the data and not to chance.

    Args:
        after_epoch: called with the number of epochs done and the optimizer.

    Returns:
        The learning rate of each step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    total = settings.epochs * -(-len(examples) // settings.batch_rows)
    rise = max(1, round(settings.warmup * total))
    rates: list[float] = []
    model.eval()
    for epoch in range(settings.epochs):
        order = sorted(examples, key=lambda example: _place(example, settings.seed, epoch))
        for start in range(0, len(order), settings.batch_rows):
            batch = as_batch(order[start : start + settings.batch_rows])
            step = len(rates)
            rates.append(settings.learning_rate * min(1, (step + 1) / rise) * (1 - step / total))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten().to(device)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        after_epoch(epoch + 1, optimizer)
    return rates


def _place(example: Example, seed: int, epoch: int) -> bytes:
    return hashlib.sha256(f"{seed} {epoch} ".encode() + example.digest).digest()


@torch.no_grad()
def losses(model: nn.Module, examples: Sequence[Example], batch_rows: int = 16) -> list[float]:
    """Return each example's loss, summed over its labelled tokens, nats."""
    model.eval()
    device = next(model.parameters()).device
    found: list[float] = []
    for start in range(0, len(examples), batch_rows):
        batch = as_batch(examples[start : start + batch_rows])
        logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits[:, :-1]
        each = F.cross_entropy(
            logits.mT.float(),
            batch.labels[:, 1:].to(device),
            reduction="none",
            ignore_index=IGNORED,
        )
        found.extend(each.sum(1).tolist())
    return found
