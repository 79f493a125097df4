"""A short pass that tells whether targets are captured rightly, before they are believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.capture.watching import captured
from rapidin_cli.gradients.directions import LayerGradient

# What is tried on a model: sequences of different words.
_PROBE_BATCH, _PROBE_LENGTH = 2, 5
# Tensors that are compared with their own gradients; and how far those may lie apart, as a share,
# in float32 and in half precision.
_COMPARED, _APART = 2**20, (1e-3, 5e-2)

MIXED = "its inputs do not keep the examples of a batch apart"
NOT_RUN = "not run as a layer in the forward pass"
TUPLE = "returns more than one tensor, as some routers do"
OTHERWISE = "used in another way than a layer's weight"
UNKNOWN = "not the weight of a layer that is known"


def probe_ids(model: nn.Module) -> torch.Tensor:
    """Two short sequences of different words."""
    device = next(model.parameters()).device
    rows = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = torch.arange(1, 1 + _PROBE_BATCH * _PROBE_LENGTH, device=device) % len(rows)
    return ids.view(_PROBE_BATCH, -1)


class Trial:
    """A pass over two short sequences, of which the first alone has a loss."""

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self.calls = [0] * len(targets)
        self.strays: list[list[Any]] = [[] for _ in targets]
        self.apart = [True] * len(targets)
        self.gradients: dict[int, torch.Tensor] = {}
        self._targets = targets
        watched = [replace(target, calls=0) for target in targets]
        compared = [n for n, target in enumerate(targets) if _is_compared(target)]
        parameters = [targets[n].parameters[0] for n in compared]
        start: list[torch.Tensor] = []
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        with captured(model, watched, self._take, self._see):
            handle = embedding.register_forward_hook(lambda *call: start.append(call[-1]))
            logits = model(input_ids=probe_ids(model), use_cache=False).logits
            loss = logits[0].float().square().sum()
            outputs = [
                output
                for each in self.strays
                for output in each
                if isinstance(output, torch.Tensor) and output.requires_grad
            ]
            # To the start, so that the pass goes through all layers.
            ends = [*parameters, *outputs, *start]
            found = torch.autograd.grad(loss, ends, allow_unused=True)
            handle.remove()
        self.truth = dict(zip(compared, found[: len(compared)], strict=True))
        self.strayed = {id(o): g for o, g in zip(outputs, found[len(compared) :], strict=False)}

    def _see(self, number: int, output: Any, fits: bool) -> None:
        if fits:
            self.calls[number] += 1
        else:
            self.strays[number].append(output)

    def _take(self, number: int, x: torch.Tensor, d: Any) -> None:
        gradient = LayerGradient.of(x, d)
        self.apart[number] = not bool(gradient.pick(slice(1, 2)).norm() > 0)
        if _is_compared(self._targets[number]):
            self.gradients[number] = gradient.dense().sum(0)

    def verdict(self, number: int) -> str:
        """Say why a target cannot be captured; empty if it can."""
        strays = self.strays[number]
        if any(not isinstance(output, torch.Tensor) for output in strays):
            return TUPLE if self._targets[number].kind == "matrix" else UNKNOWN
        with_gradient = [o for o in strays if self.strayed.get(id(o)) is not None]
        if any(len(output) == _PROBE_BATCH for output in with_gradient):
            return OTHERWISE
        if with_gradient:
            return MIXED
        if not self.calls[number]:
            return NOT_RUN
        if not self.apart[number]:
            return MIXED
        if number in self.truth and not self._agrees(number):
            return OTHERWISE
        return ""

    def _agrees(self, number: int) -> bool:
        target, truth = self._targets[number], self.truth[number]
        found = self.gradients[number].float()
        if truth is None:
            return not found.any()
        expected = target.gathered(lambda _: truth).float()
        most = _APART[truth.dtype != torch.float32 or found.dtype != torch.float32]
        return bool((found - expected).norm() <= most * expected.norm() + 1e-12)


def _is_compared(target: Target) -> bool:
    special = bool(target.handed) or target.kind != "matrix"
    return special and target.layer.size <= _COMPARED
