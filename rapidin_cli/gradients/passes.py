"""Forward and backward passes of a model whose target layers are watched."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rapidin_cli.data.examples import IGNORED, Example, padded
from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.targets import find_targets, share_left_out
from rapidin_cli.gradients.capture.uses import OutputLayerUse
from rapidin_cli.gradients.capture.watching import (
    Consumer,
    Perturbation,
    captured,
    perturbed,
    watched,
)
from rapidin_cli.gradients.model_parts import (
    absolute_positions,
    inner,
    plain_experts,
    recomputed,
    vocabulary,
    weight_bytes,
)
from rapidin_cli.gradients.output_layer import OutputLayer, drawn

Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64, not shifted: labels[b, t] is the token at t if it is learnt
            from and IGNORED otherwise.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


class NoForwardModeError(Exception):
    """An operator of the model has no forward-mode derivative."""


class Passes:
    """Runs one model on one device; it is put into eval mode and all its weights are frozen.

    Args:
        model: a causal LM whose trainable parameters `require_grad`.
        pattern: regular expression on the names of the layers to watch.
        device: where the model is.
        compute: `bfloat16` runs the model under autocast.
        linear: watch linear layers alone.

    Attributes:
        trained: names of all trainable parameters.
        targets: the watched layers. skipped: trainable parameters that are not, and why.
        left_out: what share of all trained numbers cannot be watched, and why.
        vocabulary: tokens that the model knows.
        weight_bytes: memory of its weights and buffers.
        keeps: padded tokens of a batch whose activations fit in memory: those of a longer
            one are computed twice. None: of any.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str,
        device: torch.device,
        compute: Compute,
        *,
        linear: bool = False,
    ) -> None:
        model.eval()
        self.model = model
        self.device = device
        self.compute = compute
        self.vocabulary = vocabulary(model)
        self.weight_bytes = weight_bytes(model)
        self.keeps: int | None = None
        self._positions = absolute_positions(inner(model))
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.targets, self.skipped = find_targets(model, pattern, linear=linear)
        self.left_out = share_left_out(self.targets, self.skipped)
        model.requires_grad_(False)
        self._separate = self._find_head()
        self._keeps_logits = "logits_to_keep" in inspect.signature(inner(model).forward).parameters

    def backward(
        self,
        batch: Batch,
        consume: Consumer,
        weights: torch.Tensor | None = None,
        sampler: torch.Generator | None = None,
    ) -> list[torch.Tensor]:
        """Hand each target's inputs and output gradients to `consume`.

        The loss is next-token cross-entropy, labels shifted by one, summed over the
        labelled tokens (DESIGN 4.1).

        Args:
            batch: the sequences.
            consume: gets (number, x (B, T, I), d (B, T, O)), layer by layer.
            weights: (B,) factors of the sequences' losses; ones when None.
            sampler: draws other labels, from the model's predictions, in place of the data's.

        Returns:
            For each sequence, the loss of each labelled token in order, nats, not weighted.
        """
        ids, labels = self._moved(batch)
        counts = (labels[:, 1:] != IGNORED).sum(1)
        factors = None
        if weights is not None:
            factors = weights.to(self.device).repeat_interleave(counts)
        with captured(self.model, self.targets, consume) as capture, self._fitting(ids):
            if self._separate is not None:
                found = self._separate.above(ids, labels, factors, sampler)
                losses = found.losses
                self._separate.capture(capture, found)
                found.hidden.backward(found.gradients)
            else:
                losses = self.token_losses(ids, labels, sampler)
                _weighted(losses, factors).backward()
        return list(losses.detach().split(counts.tolist()))

    def each_token(self, batch: Batch, consume: Consumer) -> Iterator[float]:
        """Hand over what `backward` does, of one labelled token after the other.

        One forward pass of a single sequence, and a backward pass for each token's loss.

        Args:
            batch: one sequence.
            consume: gets (number, x (1, T, I), d (1, T, O)), layer by layer.

        Yields:
            The loss of a labelled token, nats, once its gradients have been handed over.
        """
        ids, labels = self._moved(batch)
        with watched(self.model, self.targets, consume) as capture, self._fitting(ids):
            above = None
            if self._separate is not None:
                above = self._separate.above(ids, labels, None, None)
                ends, gradients, losses = above.hidden, above.gradients, above.losses
            else:
                ends = losses = self.token_losses(ids, labels)
                gradients = torch.ones_like(losses)
        for token, loss in enumerate(losses.detach().tolist()):
            alone = torch.zeros_like(gradients)
            alone[token] = gradients[token]
            if above is not None and self._separate is not None:
                self._separate.capture(capture, above.token(token))
            ends.backward(alone, retain_graph=token + 1 < len(losses))
            capture.finish()
            yield loss

    def tangents(self, batch: Batch, perturb: Perturbation) -> list[torch.Tensor]:
        """Differentiate each token's loss along a change of the target layers' weights.

        One forward-mode pass for all tokens (DESIGN 4.4): perturb(x) is added to the tangents of
        the layers' outputs. Attention and experts run on plain kernels: the fused ones have no
        forward-mode derivative.

        Returns:
            For each sequence, the derivative of each labelled token's loss, in order.

        Raises:
            NoForwardModeError: some operator has none.
        """
        ids, labels = self._moved(batch)
        plain = sdpa_kernel(SDPBackend.MATH), plain_experts(inner(self.model))
        changed = perturbed(self.model, self.targets, perturb, *ids.shape)
        with torch.no_grad(), forward_ad.dual_level(), plain[0], plain[1], changed:
            try:
                parts = self._losses_in_parts(ids, labels, perturb)
                tangent = torch.cat([_tangent(part) for part in parts])
            except NotImplementedError as error:
                raise NoForwardModeError(str(error).split("\n")[0]) from error
        return list(tangent.split((labels[:, 1:] != IGNORED).sum(1).tolist()))

    def _losses_in_parts(
        self, ids: torch.Tensor, labels: torch.Tensor, perturb: Perturbation
    ) -> Iterator[torch.Tensor]:
        """Yield the losses of all labelled tokens, in reading order, a few of them at a time."""
        if self._separate is None:
            yield self.token_losses(ids, labels)
        else:
            yield from self._separate.losses(ids, labels, perturb)

    def exactly(self) -> Passes:
        """Return the same passes in float32, where the weights are: without autocast."""
        weights = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        exact = copy.copy(self)
        if weights == {torch.float32}:
            exact.compute = "float32"
            if self._separate is not None:
                exact._separate = replace(self._separate, autocast=exact._autocast)
        return exact

    def _moved(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self._check(batch.input_ids)
        return batch.input_ids.to(self.device), batch.labels.to(self.device)

    def _check(self, ids: torch.Tensor) -> None:
        """Refuse tokens that the embeddings cannot look up, before a device fails on them.

        Raises:
            InputError: a token or a length that the model does not know.
        """
        if int(ids.max()) >= self.vocabulary:
            raise InputError(
                f"token {int(ids.max())} is outside the model's vocabulary of {self.vocabulary:,}: "
                "tokenizer and model do not match",
                hint="correct [model] base or the checkpoint's path in rin.toml",
            )
        if self._positions is not None and ids.shape[1] > self._positions:
            raise InputError(
                f"a text of {ids.shape[1]:,} tokens is longer than the model's "
                f"{self._positions:,} positions",
                hint=f"set [data] max_tokens = {self._positions} in rin.toml",
            )

    def token_losses(
        self, ids: torch.Tensor, labels: torch.Tensor, sampler: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return the loss of each labelled token, in reading order.

        Logits are asked for only where some example has a label. There is no attention
        mask: padding is on the right and attention is causal, so nothing reads it.
        """
        wanted = labels[:, 1:] != IGNORED
        positions = wanted.any(0).nonzero().squeeze(1)
        keep = {"logits_to_keep": positions} if self._keeps_logits else {}
        with self._autocast():
            logits = self.model(input_ids=ids, use_cache=False, **keep).logits
        if not keep:
            logits = logits[:, positions]
        mask = wanted[:, positions]
        return _cross_entropy(logits[mask].float(), labels[:, 1:][:, positions][mask], sampler)

    def _find_head(self) -> OutputLayer | None:
        """Return the decoder and the output layer, if the model is one after the other.

        Tried, not guessed: models may scale or cap logits. Not where something else than the
        output layer's weight is a target in it, whose inputs must be seen example by example.
        """
        below = inner(self.model)
        decoder: Any = getattr(below, "base_model", below)
        find: Any = getattr(below, "get_output_embeddings", lambda: None)
        head: Any = find()
        if decoder is below or head is None:
            return None
        inside = set(head.modules())
        uses = [(n, use) for n, t in enumerate(self.targets) for use in t.uses]
        here = [(n, use) for n, use in uses if use.module in inside]
        weight = [(n, use) for n, use in here if isinstance(use, OutputLayerUse)]
        if len(here) > len(weight) or any(use.module is not head for _, use in weight):
            return None
        if weight and getattr(head, "bias", None) is not None:
            return None
        ids = torch.arange(6, device=self.device).view(2, 3) % self.vocabulary
        with torch.no_grad(), self._autocast():
            whole = self.model(input_ids=ids, use_cache=False).logits
            try:
                apart = head(decoder(input_ids=ids, use_cache=False)[0])
            except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
                return None  # what is called its decoder is something else
        if not torch.equal(whole, apart):
            return None
        number = weight[0][0] if weight else None
        return OutputLayer(decoder, head, self.vocabulary, self._autocast, number)

    def _fitting(self, ids: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
        """Have a forward pass keep no more than fits in memory."""
        if self.keeps is None or ids.numel() <= self.keeps:
            return contextlib.nullcontext()
        return recomputed(self.model)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.compute == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, sampler: torch.Generator | None
) -> torch.Tensor:
    """Return each token's loss; with a sampler, that of targets drawn from the predictions."""
    return F.cross_entropy(logits, drawn(logits, targets, sampler), reduction="none")


def _tangent(values: torch.Tensor) -> torch.Tensor:
    """The derivative of dual numbers; zero where nothing depends on what is changed."""
    tangent = forward_ad.unpack_dual(values).tangent
    return torch.zeros_like(values) if tangent is None else tangent


def _weighted(losses: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return losses.sum() if factors is None else (losses * factors).sum()


def on_cpu(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Bring tensors (n,) to the CPU in one copy."""
    return list(torch.cat(list(parts)).cpu().split([len(part) for part in parts]))


def as_batch(examples: Sequence[Example]) -> Batch:
    """Pad examples into a batch."""
    ids, labels = padded(examples)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels))
