"""How a module uses a trained tensor: where its gradient comes from, and what changing it does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.autograd import forward_ad

from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.wide import Formed, WordsSide


@dataclass(frozen=True)
class Call:
    """One run of a module in a forward pass over B sequences of T padded tokens.

    Its output is described, not kept: it may be as large as what a backward pass needs anyway.
    """

    batch: int
    length: int
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        batch: int,
        length: int,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        output: torch.Tensor,
    ) -> Call:
        """Describe a run, by values that autograd and dual numbers know nothing of."""
        plain = tuple(_primal(value) for value in inputs)
        known = {name: _primal(value) for name, value in named.items()}
        return cls(batch, length, plain, known, output.shape, output.dtype, output.device)


Kind = Literal["matrix", "wide", "experts", "vectors"]
"""Of a target, see `target.Target`."""

Along = Callable[[torch.Tensor], torch.Tensor]
"""Maps inputs (B, S, I) of an (O, I) tensor, or tokens (B, S), to the change of its outputs."""


@dataclass(frozen=True)
class Part:
    """A share of a target's gradient: x (B, S, I) and d (B, S, O), or rows (n, I) of experts.

    Attributes:
        start: where it is among all vectors.
        blocks, examples: (n,) of rows of experts, to which block and example they belong.
    """

    x: torch.Tensor
    d: Side
    start: int = 0
    blocks: torch.Tensor | None = None
    examples: torch.Tensor | None = None


class Use(Protocol):
    """A module that uses a trained tensor."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    def accepts(self, call: Call) -> bool:
        """Whether a run of the module is one whose examples can be told apart."""

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """Return the share of a run in the tensor's gradient, from that of the output."""

    def change(self, call: Call, along: Along) -> torch.Tensor:
        """Return how the output changes with the tensor, in the output's shape."""


def by_example(values: torch.Tensor, batch: int) -> torch.Tensor:
    """(B, ..., n) or (B * S, n) as (B, S, n)."""
    return values.reshape(batch, -1, values.shape[-1])


@dataclass(frozen=True)
class LinearUse:
    """The weight of a linear layer.

    Attributes:
        flat: whether its inputs are all examples' tokens in one heap, example after example.
    """

    module: nn.Module
    flat: bool = False

    @property
    def _sides(self) -> torch.Size:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.shape

    def accepts(self, call: Call) -> bool:
        """See `Use.accepts`."""
        shape = call.inputs[0].shape
        if call.shape[:-1] != shape[:-1] or call.shape[-1] not in self._sides:
            return False
        if self.flat:
            return len(shape) == 2 and shape[0] == call.batch * call.length
        return len(shape) > 2 and shape[0] == call.batch

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """See `Use.part`."""
        return Part(by_example(call.inputs[0], call.batch), by_example(d, call.batch))

    def change(self, call: Call, along: Along) -> torch.Tensor:
        """See `Use.change`."""
        return along(by_example(call.inputs[0], call.batch)).view(call.shape)


@dataclass(frozen=True)
class OutputLayerUse(LinearUse):
    """The weight of the output layer: its outputs are as wide as the vocabulary."""

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """See `Use.part`."""
        x, side = by_example(call.inputs[0], call.batch), by_example(d, call.batch)
        return Part(x, WordsSide(side.shape[2], Formed(side)))


@dataclass(frozen=True)
class EmbeddingUse:
    """The weight of an embedding.

    Attributes:
        scale: what is looked up is multiplied by.
    """

    module: nn.Embedding
    scale: float = 1.0

    def accepts(self, call: Call) -> bool:
        """See `Use.accepts`; positions are often looked up once for all examples."""
        return call.inputs[0].dim() == 2 and call.shape[0] == call.batch

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """See `Use.part`."""
        ids = self._ids(call)
        x = d * self.scale
        if self.module.padding_idx is not None:  # autograd leaves it out
            x = x * (ids != self.module.padding_idx)[..., None]
        return Part(x, WordsSide(self.module.num_embeddings, ids=ids))

    def change(self, call: Call, along: Along) -> torch.Tensor:
        """See `Use.change`."""
        ids = self._ids(call)
        change = along(ids) * self.scale
        if self.module.padding_idx is not None:
            change = change * (ids != self.module.padding_idx)[..., None]
        return change

    @staticmethod
    def _ids(call: Call) -> torch.Tensor:
        ids: torch.Tensor = call.inputs[0]
        return ids.expand(call.batch, -1)


@dataclass(frozen=True)
class TokensUse:
    """New rows for some words (PEFT's trainable tokens), in an embedding or an output layer.

    Attributes:
        words: (n,), to which each row of the (n, H) tensor belongs.
        scale: what is looked up is multiplied by.
    """

    module: nn.Module
    words: torch.Tensor
    scale: float = 1.0

    def accepts(self, call: Call) -> bool:
        """See `Use.accepts`."""
        x = call.inputs[0]
        return len(x) == call.batch and (x.dim() == 3 or not x.is_floating_point())

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """See `Use.part`."""
        count, x = len(self.words), call.inputs[0]
        if x.is_floating_point():
            mine = d[..., self.words.to(d.device)]
            return Part(x, WordsSide(count, Formed(mine)))
        known, ids = self._places(x)
        return Part(d * known * self.scale, WordsSide(count, ids=ids))

    def change(self, call: Call, along: Along) -> torch.Tensor:
        """See `Use.change`."""
        x = call.inputs[0]
        if x.is_floating_point():
            change = torch.zeros(call.shape, dtype=call.dtype, device=call.device)
            change[..., self.words.to(x.device)] = along(x).to(change.dtype)
            return change
        known, ids = self._places(x)
        return along(ids) * known * self.scale

    def _places(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether words have a row here, (B, T, 1), and which, (B, T)."""
        same = ids[..., None] == self.words.to(ids.device)
        return same.any(2, keepdim=True), same.int().argmax(2)


@dataclass(frozen=True)
class VectorUse:
    """A vector of which each number acts on one number of the outputs: a bias, a norm's weight.

    It is an (O, 1) tensor whose input is 1, and its d is summed over tokens.

    Attributes:
        name: the parameter's name in the module.
        start: where it begins among all vectors.
    """

    module: nn.Module
    name: str
    start: int = 0

    @property
    def size(self) -> int:
        """Numbers of the vector."""
        return self._vector.numel()

    @property
    def _vector(self) -> torch.Tensor:
        vector = self.module._parameters[self.name]
        assert vector is not None
        return vector

    def accepts(self, call: Call) -> bool:
        """See `Use.accepts`."""
        shape, tokens = call.shape, call.batch * call.length
        if len(shape) < 2 or shape[-1] != self.size:
            return False
        return shape[0] == call.batch or shape[0] % tokens == 0

    def part(self, call: Call, d: torch.Tensor) -> Part:
        """See `Use.part`."""
        whole = by_example(d.float() * self._slope(call), call.batch).sum(1, keepdim=True)
        return Part(whole.new_ones(call.batch, 1, 1), whole, self.start)

    def change(self, call: Call, along: Along) -> torch.Tensor:
        """See `Use.change`."""
        slope = self._slope(call)
        change = along(torch.ones(call.batch, 1, 1, device=call.device))
        change = change[..., self.start : self.start + self.size]
        whole = torch.broadcast_to(torch.as_tensor(slope, device=call.device), call.shape)
        return (change * by_example(whole, call.batch)).view(call.shape)

    def _slope(self, call: Call) -> torch.Tensor | float:
        """How each output number grows with its number of the vector, in the output's shape.

        The output is affine in the vector (`targets` checks that): its values at one and at zero
        tell.
        """
        if self.name == "bias":
            return 1.0
        kind, dtype = call.device.type, call.dtype
        rounded = dtype in (torch.bfloat16, torch.float16)
        with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=rounded):
            values = []
            for number in (1.0, 0.0):
                with self._replaced(torch.full_like(self._vector, number)):
                    values.append(self.module.forward(*call.inputs, **call.named).float())
        slope: torch.Tensor = values[0] - values[1]
        return slope

    @contextlib.contextmanager
    def _replaced(self, vector: torch.Tensor) -> Any:
        before = self.module._parameters[self.name]
        self.module._parameters[self.name] = nn.Parameter(vector, requires_grad=False)
        try:
            yield
        finally:
            self.module._parameters[self.name] = before


def _primal(value: Any) -> Any:
    """A value without what autograd knows of it."""
    if not isinstance(value, torch.Tensor):
        return value
    return forward_ad.unpack_dual(value).primal.detach()
