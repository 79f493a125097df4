"""How a tensor is used that its module hands to functions, as fused experts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rapidin_cli.gradients.capture.blocks import BlocksSide
from rapidin_cli.gradients.capture.functions import Event
from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.uses import Kind, Part, by_example
from rapidin_cli.gradients.capture.wide import WordsSide

Changed = Callable[[torch.Tensor, slice | None], torch.Tensor]
"""Maps inputs (B, S, I), or words (B, S), to the change of all outputs or of some, (B, S, n)."""


@dataclass(frozen=True)
class HandedUse:
    """A trained tensor among what functions are given, see `functions`.

    Attributes:
        shape: of the tensor.
        kind: of its target.
        turned: whether it is (I, O), or (E, I, O) of experts.
        start: where it begins among all vectors.
    """

    shape: torch.Size
    kind: Kind
    turned: bool = False
    start: int = 0

    def accepts(self, event: Event, batch: int, length: int) -> bool:
        """Whether examples can be told apart in what a function was given."""
        given, output = event.given, event.output
        wanted = {"wide": "words", "vectors": "sum"}.get(self.kind, "linear")
        if event.kind != wanted or (given.turned != self.turned and wanted != "sum"):
            return False
        if event.kind == "words":
            return len(output) == batch
        if event.rows is not None:
            return output.dim() == 2 and len(event.rows) == len(output)
        if given.block is not None:
            return False
        if self.kind == "experts":
            return output.dim() == 3 and output.shape[1] == batch * length
        flat = output.dim() == 2 and len(output) == batch * length
        return flat or (output.dim() > 2 and len(output) == batch)

    def taken(self, event: Event, d: torch.Tensor, batch: int, length: int) -> Part:
        """Return the share of a function's output gradient in the tensor's.

        Args:
            batch, length: B sequences of T tokens.
        """
        if event.kind == "words":
            assert event.x is not None
            return Part(d, WordsSide(self.shape[1], ids=event.x.expand(batch, -1)))
        block = event.given.block
        if self.kind == "vectors":
            width = self.shape[-1]
            total = torch.zeros(batch, width, device=d.device)
            total.index_add_(
                0, _examples(event, batch, length, d.device), d.reshape(-1, width).float()
            )
            start = self.start + (block or 0) * width
            return Part(total.new_ones(batch, 1, 1), total[:, None], start)
        assert event.x is not None
        x = event.x.detach()
        if self.kind == "matrix":
            return Part(by_example(x, batch), by_example(d, batch))
        if block is not None:
            blocks = torch.full((len(x),), block, device=d.device)
            return Part(x, d, 0, blocks, _examples(event, batch, length, d.device))
        # All experts at once, (E, N, I): each has a row of every token.
        experts, count = x.shape[:2]
        blocks = torch.arange(experts, device=d.device).repeat_interleave(count)
        examples = torch.arange(count, device=d.device) // (count // batch)
        return Part(x.flatten(0, 1), d.flatten(0, 1), 0, blocks, examples.repeat(experts))

    def change(self, event: Event, changed: Changed, batch: int, length: int) -> torch.Tensor:
        """Return how a function's output changes with the tensor, in the output's shape.

        Args:
            event: with values, not dual numbers.
        """
        output, block = event.output, event.given.block
        if event.kind == "words":
            assert event.x is not None
            return changed(event.x.expand(batch, -1), None)
        if self.kind == "vectors":
            width = self.shape[-1]
            first = self.start + (block or 0) * width
            ones = torch.ones(batch, 1, 1, device=output.device)
            each = changed(ones, slice(first, first + width))[:, 0]
            return each[_examples(event, batch, length, output.device)].view(output.shape)
        assert event.x is not None
        if self.kind == "matrix":
            return changed(by_example(event.x, batch), None).view(output.shape)
        width = output.shape[-1]
        if block is not None:
            part = slice(block * width, (block + 1) * width)
            examples = _examples(event, batch, length, output.device)
            return _of_rows(event.x, examples, changed, part, batch)
        made = [
            changed(by_example(x, batch), slice(n * width, (n + 1) * width))
            for n, x in enumerate(event.x)
        ]
        return torch.stack([each.flatten(0, 1) for each in made])


def _examples(event: Event, batch: int, length: int, device: torch.device) -> torch.Tensor:
    """To which example each row of the output belongs, (n,)."""
    if event.rows is not None:
        return event.rows // length
    count = event.output.shape[:-1].numel()
    return torch.arange(count, device=device) // (count // batch)


def _of_rows(
    x: torch.Tensor, examples: torch.Tensor, changed: Changed, part: slice, batch: int
) -> torch.Tensor:
    """The change of rows (n, I) that belong to several examples."""
    order = examples.argsort(stable=True)
    sizes = examples.bincount(minlength=batch).tolist()
    padded = nn.utils.rnn.pad_sequence(x[order].split(sizes), batch_first=True)
    found = changed(padded, part)
    made = found.new_empty(len(x), found.shape[2])
    made[order] = torch.cat([row[:size] for row, size in zip(found, sizes, strict=True)])
    return made


def gathered(parts: Sequence[Part], batch: int, count: int) -> tuple[torch.Tensor, Side]:
    """Put rows of experts together by example: x (B, S, I) and d (B, S, E * O)."""
    examples = torch.cat([part.examples for part in parts if part.examples is not None])
    blocks = torch.cat([part.blocks for part in parts if part.blocks is not None])
    x = torch.cat([part.x for part in parts])
    d = torch.cat([part.d for part in parts if isinstance(part.d, torch.Tensor)])
    real = d.any(1)  # not every expert is asked about every token
    order = examples[real].argsort(stable=True)
    sizes = examples[real].bincount(minlength=batch).tolist()
    whole_x, whole_d, whole_blocks = (
        nn.utils.rnn.pad_sequence(values[real][order].split(sizes), batch_first=True)
        for values in (x, d, blocks)
    )
    return whole_x, BlocksSide(whole_d, whole_blocks, count)
