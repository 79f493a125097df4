"""Hooks that hand over each target's inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd import forward_ad

from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.capture.uses import Call, EmbeddingUse, Use
from rapidin_cli.gradients.capture.wide import Side

Consumer = Callable[[int, torch.Tensor, Side], None]
"""Called with a target's number, its inputs (B, T, I) and output gradients (B, T, O)."""


class Perturbation(Protocol):
    """A change of all targets."""

    def __call__(self, number: int, inputs: torch.Tensor, row: int | None = None) -> torch.Tensor:
        """Return the change of a target's outputs, (B, T, O).

        Args:
            inputs: (B, T, I), or the tokens (B, T) that an embedding looks up: then (B, T, I).
            row: the sequence that a single one's inputs belong to.
        """


class Capture:
    """What a backward pass has reached of the targets; `watched` makes it.

    Attributes:
        batch: sequences of the forward pass.
        asleep: whether hooks do nothing: modules are run aside.
    """

    def __init__(self, targets: Sequence[Target], consume: Consumer) -> None:
        self._targets = targets
        self._consume = consume
        self._parts: dict[int, list[tuple[Use, torch.Tensor, Side]]] = {}
        self._reached: set[int] = set()
        self._like: torch.Tensor | None = None
        self.batch = 0
        self.asleep = False

    def start(self, embedded: torch.Tensor) -> None:
        """Begin with a forward pass, whose input embeddings are these."""
        self._like = embedded
        self.batch = len(embedded)

    def await_gradient(self, number: int, use: Use, call: Call, output: torch.Tensor) -> None:
        """Take one use of a target once the module's output has a gradient."""

        def arrive(d: torch.Tensor) -> None:
            self.asleep = True
            try:
                x, side = use.sides(call, d)
            finally:
                self.asleep = False
            self.take(number, use, x, side)

        output.register_hook(arrive)

    def take(self, number: int, use: Use, x: torch.Tensor, d: Side) -> None:
        """Take one use of a target."""
        calls = self._targets[number].calls
        self._reached.add(number)
        if calls == 1:
            self._consume(number, x, d)
            return
        parts = self._parts.setdefault(number, [])
        parts.append((use, x, d))
        if len(parts) == calls:
            self._hand_over(number)

    def finish(self) -> None:
        """End a backward pass: hand over what is left, and zeros for what it did not reach."""
        if self._like is None:
            return
        for number in sorted(self._parts):  # of several calls, only some have a gradient
            self._hand_over(number)
        for number, target in enumerate(self._targets):
            if number not in self._reached:
                self._consume(number, *target.nothing(self._like))
        self._reached.clear()

    def _hand_over(self, number: int) -> None:
        self._consume(number, *self._targets[number].merged(self._parts.pop(number)))


@contextmanager
def captured(
    model: nn.Module, targets: Sequence[Target], consume: Consumer, seen: Seen | None = None
) -> Iterator[Capture]:
    """While active, a backward pass hands each target's (x, d) to `consume`; see `watched`."""
    with watched(model, targets, consume, seen) as capture:
        yield capture
    capture.finish()


Seen = Callable[[int, Any, bool], None]
"""Called with a target's number, what a module returned, and whether that run can be captured."""


@contextmanager
def watched(
    model: nn.Module,
    targets: Sequence[Target],
    consume: Consumer,
    seen: Seen | None = None,
) -> Iterator[Capture]:
    """While active, a forward pass is watched: passes back through it hand (x, d) to `consume`.

    No weight needs a gradient: the input embeddings' output is made to require one, which
    is enough for autograd to compute output gradients everywhere. Inputs and gradients are
    released layer by layer as the backward pass goes. A target that the pass did not reach has
    a gradient of zero, and `Capture.finish` hands it over: every target is, so that no list
    closes up.
    """
    capture = Capture(targets, consume)

    def watch(number: int, use: Use) -> Any:
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> Any:
            del module
            if capture.asleep:
                return None
            made = _looked_up(use, output, capture.batch)
            call = None
            if isinstance(made, torch.Tensor):
                call = Call(capture.batch, inputs, named, made.detach())
            fits = call is not None and use.accepts(call)
            if call is not None and fits and made.requires_grad:
                capture.await_gradient(number, use, call, made)
            if seen is not None:
                seen(number, made, fits)
            return made

        return hook

    def start_graph(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        del module, inputs
        capture.start(output.detach())
        return output if output.requires_grad else output.requires_grad_()

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handles = [embedding.register_forward_hook(start_graph)]
    handles += hooked(targets, watch)
    try:
        yield capture
    finally:
        for handle in handles:
            handle.remove()


def hooked(targets: Sequence[Target], watch: Callable[[int, Use], Any]) -> list[Any]:
    """Hook every module that uses a target."""
    return [
        use.module.register_forward_hook(watch(number, use), with_kwargs=True)
        for number, target in enumerate(targets)
        for use in target.uses
    ]


def _looked_up(use: Use, output: Any, batch: int) -> Any:
    """What an embedding has found, of each example, so that it has a gradient of its own."""
    if not isinstance(use, EmbeddingUse):
        return output
    if output.shape[0] == 1 and batch > 1:
        output = output.expand(batch, *output.shape[1:])
    return output if output.requires_grad else output.requires_grad_()


@contextmanager
def perturbed(targets: Sequence[Target], perturb: Perturbation, batch: int) -> Iterator[None]:
    """While active, a forward pass over dual numbers has the outputs' tangents changed."""
    asleep = False

    def watch(number: int, use: Use) -> Any:
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> Any:
            nonlocal asleep
            del module
            if asleep or not isinstance(output, torch.Tensor):
                return output
            if isinstance(use, EmbeddingUse) and output.shape[0] == 1:
                output = output.expand(batch, *output.shape[1:]).clone()
            # The inputs' own changes are in the output's already.
            before = forward_ad.unpack_dual(output)
            call = Call(batch, inputs, named, before.primal)
            if not use.accepts(call):
                return output
            asleep = True
            try:
                change = use.change(call, lambda x: perturb(number, x)).to(output.dtype)
            finally:
                asleep = False
            if before.tangent is not None:
                change = before.tangent + change
            return forward_ad.make_dual(before.primal, change)

        return hook

    handles = hooked(targets, watch)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
