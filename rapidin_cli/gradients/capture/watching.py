"""Hooks that hand over each target's inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd import forward_ad

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.functions import Event, Functions
from rapidin_cli.gradients.capture.handed import HandedUse
from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.capture.uses import Call, EmbeddingUse, OutputLayerUse, Part, Use
from rapidin_cli.gradients.model_parts import inner, plain_experts

Consumer = Callable[[int, torch.Tensor, Side], None]
"""Called with a target's number, its inputs (B, T, I) and output gradients (B, T, O)."""


class Perturbation(Protocol):
    """A change of all targets."""

    def __call__(
        self,
        number: int,
        inputs: torch.Tensor,
        row: int | None = None,
        part: slice | None = None,
    ) -> torch.Tensor:
        """Return the change of a target's outputs, (B, T, O).

        Args:
            inputs: (B, T, I), or the tokens (B, T) that an embedding looks up: then (B, T, I).
            row: the sequence that a single one's inputs belong to.
            part: the outputs that are wanted; all if None.
        """


class Capture:
    """What a backward pass has reached of the targets; `watched` makes it.

    Attributes:
        batch, length: sequences of the forward pass, and their padded tokens.
        asleep: whether hooks do nothing: modules are run aside.
    """

    def __init__(self, targets: Sequence[Target], consume: Consumer) -> None:
        self._targets = targets
        self._consume = consume
        self._parts: dict[int, list[Part]] = {}
        self._reached: set[int] = set()
        self._like: torch.Tensor | None = None
        self.batch = self.length = 0
        self.asleep = False

    def target(self, number: int) -> Target:
        """Return one of the targets."""
        return self._targets[number]

    def begin(self, ids: torch.Tensor) -> None:
        """Begin with a forward pass over these tokens, (B, T)."""
        self.batch, self.length = ids.shape[:2]

    def start(self, embedded: torch.Tensor) -> None:
        """Go on with their embeddings, (B, T, H)."""
        self._like = embedded

    def await_gradient(self, number: int, use: Use, call: Call, output: torch.Tensor) -> None:
        """Take one use of a target once the module's output has a gradient."""

        output.register_hook(lambda d: self._arrive(number, lambda: use.part(call, d)))

    def await_function(self, number: int, use: HandedUse, event: Event) -> None:
        """Do the same with what a function was given."""
        # A hook that holds its own tensor is never freed.
        x = None if event.x is None else event.x.detach()
        known = replace(event, x=x, output=torch.empty_like(event.output, device="meta"))
        event.output.register_hook(
            lambda d: self._arrive(number, lambda: use.taken(known, d, self.batch, self.length))
        )

    def _arrive(self, number: int, part: Callable[[], Part]) -> None:
        self.asleep = True  # modules are run aside
        try:
            self.take(number, part())
        finally:
            self.asleep = False

    def take(self, number: int, part: Part) -> None:
        """Take one use of a target."""
        calls = self._targets[number].calls
        self._reached.add(number)
        if calls == 1:
            self._consume(number, part.x, part.d)
            return
        parts = self._parts.setdefault(number, [])
        parts.append(part)
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
        self._consume(number, *self._targets[number].merged(self._parts.pop(number), self.batch))


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

    def start_graph(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        del module, inputs
        capture.start(output.detach())
        return output if output.requires_grad else output.requires_grad_()

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    # What is inside an adapter's embedding runs before it has an output.
    handles = [embedding.register_forward_pre_hook(lambda _, inputs: capture.begin(inputs[0]))]
    handles.append(embedding.register_forward_hook(start_graph))
    handles += _hooked(targets, lambda number, use: _watching(capture, number, use, seen))
    owners, tensors, uses = _handed(targets)

    def see(event: Event) -> None:
        number, use = owners[event.given.number], uses[event.given.number]
        fits = use.accepts(event, capture.batch, capture.length)
        if fits and _with_gradient(event.output):
            capture.await_function(number, use, event)
        _report(targets[number], event.output, fits, seen, number)

    try:
        with _functions(model, tensors, see, lambda: capture.asleep):
            yield capture
    finally:
        for handle in handles:
            handle.remove()


def _watching(capture: Capture, number: int, use: Use, seen: Seen | None) -> Any:
    """The hook of a module that uses a target."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        del module
        if capture.asleep:
            return None
        made = _looked_up(use, output, capture.batch)
        call = None
        if isinstance(made, torch.Tensor):
            call = Call.of(capture.batch, capture.length, inputs, named, made)
        fits = call is not None and use.accepts(call)
        if call is not None and fits and _with_gradient(made):
            capture.await_gradient(number, use, call, made)
        if not isinstance(
            use, OutputLayerUse
        ):  # above a decoder it is run aside, see `OutputLayer`
            _report(capture.target(number), made, fits, seen, number)
        elif seen is not None:
            seen(number, made, fits)
        return made

    return hook


def _handed(
    targets: Sequence[Target],
) -> tuple[list[int], list[tuple[int, torch.Tensor]], list[HandedUse]]:
    """Number what functions are given: each one's target, the tensors, and how they are used."""
    flat = [(number, *pair) for number, target in enumerate(targets) for pair in target.handed]
    tensors: list[tuple[int, torch.Tensor]] = [(n, each[1]) for n, each in enumerate(flat)]
    return [each[0] for each in flat], tensors, [each[2] for each in flat]


@contextmanager
def _functions(
    model: nn.Module,
    tensors: Sequence[tuple[int, torch.Tensor]],
    see: Callable[[Event], torch.Tensor | None],
    asleep: Callable[[], bool],
) -> Iterator[None]:
    """Look at functions, if any are looked for: one expert is then run after the other."""
    if not tensors:
        yield
        return
    with plain_experts(inner(model)), Functions(tensors, see, asleep):
        yield


def _hooked(targets: Sequence[Target], watch: Callable[[int, Use], Any]) -> list[Any]:
    """Hook every module that uses a target."""
    return [
        use.module.register_forward_hook(watch(number, use), with_kwargs=True)
        for number, target in enumerate(targets)
        for use in target.uses
    ]


def _report(target: Target, output: Any, fits: bool, seen: Seen | None, number: int) -> None:
    """Tell of a run; one that was found to fit, and does not, may not go by in silence."""
    if seen is not None:
        seen(number, output, fits)
    elif not fits and isinstance(output, torch.Tensor) and output.requires_grad:
        raise InputError(
            f"the model runs {target.layer.name} on inputs that do not keep the examples of a "
            "batch apart, though it did not when it was tried",
            hint="leave it out with [gradient] layers in rin.toml",
        )


def _with_gradient(output: torch.Tensor) -> bool:
    """Whether an output has a gradient; what is made before the graph starts is given one."""
    if not output.requires_grad and torch.is_grad_enabled():
        output.requires_grad_()
    return output.requires_grad


def _looked_up(use: Use, output: Any, batch: int) -> Any:
    """What an embedding has found, of each example, so that it has a gradient of its own."""
    if not isinstance(use, EmbeddingUse):
        return output
    if output.shape[0] == 1 and batch > 1:
        output = output.expand(batch, *output.shape[1:])
    return output


class _Perturbed:
    """Changes the tangents of what uses targets."""

    def __init__(self, perturb: Perturbation, batch: int, length: int) -> None:
        self._perturb = perturb
        self._batch = batch
        self._length = length
        self.asleep = False

    def watch(self, number: int, use: Use) -> Any:
        """Return the hook of a module."""

        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> Any:
            del module
            if self.asleep or not isinstance(output, torch.Tensor):
                return output
            if isinstance(use, EmbeddingUse) and output.shape[0] == 1:
                output = output.expand(self._batch, *output.shape[1:]).clone()
            primal = forward_ad.unpack_dual(output).primal
            call = Call.of(self._batch, self._length, inputs, named, primal)
            if not use.accepts(call):
                return output
            return self._changed(
                output, lambda: use.change(call, lambda x: self._perturb(number, x))
            )

        return hook

    def see(self, number: int, use: HandedUse, event: Event) -> torch.Tensor | None:
        """Change what a function returned."""
        if not use.accepts(event, self._batch, self._length):
            return None
        x = None if event.x is None else forward_ad.unpack_dual(event.x).primal
        primal = forward_ad.unpack_dual(event.output).primal
        known = replace(event, x=x, output=primal)

        def along(x: torch.Tensor, part: slice | None) -> torch.Tensor:
            return self._perturb(number, x, part=part)

        return self._changed(
            event.output, lambda: use.change(known, along, self._batch, self._length)
        )

    def _changed(self, output: torch.Tensor, change: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Add to the tangent: the inputs' own changes are in it already."""
        before = forward_ad.unpack_dual(output)
        self.asleep = True
        try:
            more = change().to(output.dtype)
        finally:
            self.asleep = False
        if before.tangent is not None:
            more = before.tangent + more
        made: torch.Tensor = forward_ad.make_dual(before.primal, more)
        return made


@contextmanager
def perturbed(
    model: nn.Module,
    targets: Sequence[Target],
    perturb: Perturbation,
    batch: int,
    length: int,
) -> Iterator[None]:
    """While active, a forward pass over dual numbers has the outputs' tangents changed.

    Args:
        batch, length: B sequences of T tokens.
    """
    changes = _Perturbed(perturb, batch, length)
    handles = _hooked(targets, changes.watch)
    owners, tensors, uses = _handed(targets)

    def see(event: Event) -> torch.Tensor | None:
        number = event.given.number
        return changes.see(owners[number], uses[number], event)

    try:
        with _functions(model, tensors, see, lambda: changes.asleep):
            yield
    finally:
        for handle in handles:
            handle.remove()
