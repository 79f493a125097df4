"""Trained tensors that no layer of their own uses: modules hand them to functions.

Fused experts (E matrices in one tensor), routers, adapters on embeddings: what `F.linear`, a
product or a look-up is given is seen while a forward pass runs. An expert's rows are a choice of
the tokens, so it is also seen which ones were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LINEAR = {F.linear, torch._C._nn.linear}
_PRODUCTS = {
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul),
    *(torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm),
}
_SUMS = {torch.Tensor.__add__, torch.Tensor.add, torch.add, torch.Tensor.__radd__}
_LOOK_UPS = {F.embedding, torch.embedding}
_PICKS = {torch.Tensor.__getitem__}
_TURNS = {torch.Tensor.t, torch.t, torch.Tensor.T.__get__, torch.Tensor.mT.__get__}  # type: ignore[attr-defined]
_SWAPS = {torch.Tensor.transpose, torch.transpose}
_SAME = {torch.Tensor.to, torch.Tensor.float, torch.Tensor.type, torch.Tensor.contiguous}


@dataclass(frozen=True)
class Given:
    """A trained tensor as a function is given it.

    Attributes:
        number: of the target.
        block: which of its matrices; None for all of them.
        turned: whether its last two sides are exchanged.
    """

    number: int
    block: int | None = None
    turned: bool = False


@dataclass(frozen=True)
class Event:
    """One function that was given a trained tensor.

    Attributes:
        given: the tensor.
        kind: `linear`, `sum` or `words`, for a look-up.
        x: the other argument: inputs, (..., I) or (E, N, I), or the words; None of a sum.
        rows: which tokens, counted over the batch, its first axis chose; None if all in order.
        output: what came out.
    """

    given: Given
    kind: str
    x: torch.Tensor | None
    rows: torch.Tensor | None
    output: torch.Tensor


class Functions(TorchFunctionMode):
    """While active, what is done with some tensors is seen.

    Args:
        tensors: by target.
        see: called with each event; what it returns takes the output's place, if it does.
        asleep: whether nothing is to be seen now.
    """

    def __init__(
        self,
        tensors: Sequence[tuple[int, torch.Tensor]],
        see: Callable[[Event], torch.Tensor | None],
        asleep: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        # The tensors themselves are kept beside their ids, which are reused once they are gone.
        self._known: dict[int, tuple[Given, torch.Tensor]] = {
            id(tensor): (Given(number), tensor) for number, tensor in tensors
        }
        self._chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._last: torch.Tensor | None = None
        self._see = see
        self._asleep = asleep

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        if self._asleep() or not isinstance(made, torch.Tensor):
            return made
        first = args[0] if args else None
        if (given := self._given(first)) is not None and (
            derived := _derived(given, func, args)
        ) is not None:
            self._known[id(made)] = derived, made
            return made
        if func in _PICKS and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.long:
            self._chosen[id(made)] = args[1], made
            return made
        return self._seen(func, args, kwargs or {}, made)

    def _given(self, value: Any) -> Given | None:
        found = self._known.get(id(value))
        return found[0] if found is not None and found[1] is value else None

    def _seen(self, func: Any, args: Sequence[Any], named: Any, made: torch.Tensor) -> Any:
        """Tell of what a function was given, if it is one of those that are looked for."""
        found: list[Event] = []
        if func in _LINEAR:
            weight = args[1] if len(args) > 1 else named.get("weight")
            bias = args[2] if len(args) > 2 else named.get("bias")
            if (given := self._given(weight)) is not None:
                found.append(self._event(given, "linear", args[0], made))
            if (given := self._given(bias)) is not None:
                found.append(self._event(given, "sum", None, made))
        elif func in _PRODUCTS and (given := self._given(args[1])) is not None:
            turned = replace(given, turned=not given.turned)
            found.append(self._event(turned, "linear", args[0], made))
        elif func in _LOOK_UPS and (given := self._given(args[1])) is not None:
            found.append(Event(given, "words", args[0], None, made))
        elif func in _SUMS:
            for value in args[:2]:
                if (given := self._given(value)) is not None:
                    found.append(self._event(given, "sum", None, made))
        for event in found:
            changed = self._see(replace(event, output=made))
            made = made if changed is None else changed
        return made

    def _event(
        self, given: Given, kind: str, x: torch.Tensor | None, output: torch.Tensor
    ) -> Event:
        """An event with the tokens that it is about: those of the last choice, for an expert."""
        rows = None
        if given.block is not None:
            chosen = self._chosen.get(id(x))
            if chosen is not None and chosen[1] is x:
                self._last = chosen[0]
            rows = self._last
        return Event(given, kind, x, rows, output)


def _derived(given: Given, func: Any, args: Sequence[Any]) -> Given | None:
    """What a tensor is after a function that only looks at it from another side."""
    if func in _TURNS:
        return replace(given, turned=not given.turned)
    if func in _SWAPS and {args[1] % 2, args[2] % 2} == {0, 1}:
        return replace(given, turned=not given.turned)
    if func in _SAME:
        return given
    if func in _PICKS and given.block is None:
        index = args[1]
        if isinstance(index, int):
            return replace(given, block=index)
        if isinstance(index, torch.Tensor) and index.dim() == 0 and index.dtype == torch.long:
            return replace(given, block=int(index))
    return None
