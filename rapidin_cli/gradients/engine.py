"""A batch of examples in, their compressed gradients out."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture import Target, captured, find_targets
from rapidin_cli.gradients.oporp import Oporp
from rapidin_cli.gradients.rows import GradientRows, RowLayout
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.gradients.tensorsketch import BlockSketch, block_sizes

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


class _Sketcher(Protocol):
    layout: RowLayout

    def start(self, batch: int, divisors: torch.Tensor | None) -> None: ...

    def consume(self, number: int, x: torch.Tensor, d: torch.Tensor) -> None: ...

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]: ...


class GradientEngine:
    """Computes rows for batches on one device.

    The model is put into eval mode (no dropout) and all its weights are frozen.

    Args:
        model: a causal LM whose trainable parameters `require_grad`.
        spec: what to compute.
        device: where the model is.
        compute: `bfloat16` runs the model under autocast and takes the sketches' products
            in bfloat16 (float32 accumulation); `float32` runs everything in float32.

    Attributes:
        layout: layers and blocks of the rows.
        skipped: trainable parameters that are not captured, with the reason.
    """

    def __init__(
        self, model: nn.Module, spec: GradientSpec, device: torch.device, compute: Compute
    ) -> None:
        model.eval()
        self.model = model
        self._device = device
        self._compute = compute
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        self._positions = _absolute_positions(_inner(model))
        self._targets, self.skipped = find_targets(model, spec.layers)
        model.requires_grad_(False)
        dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
        self._sketcher: _Sketcher = (
            _OporpRows(self._targets, spec, device)
            if spec.sketch == "oporp"
            else _TensorSketchRows(self._targets, spec, device, dtype)
        )
        self.layout = self._sketcher.layout
        self._keeps_logits = "logits_to_keep" in inspect.signature(_inner(model).forward).parameters

    def __call__(self, batch: Batch, divisors: torch.Tensor | None = None) -> GradientRows:
        """Return the rows of a batch, on the CPU, in the batch's order.

        The loss is next-token cross-entropy, labels shifted by one, summed over the
        labelled tokens (DESIGN 4.1).

        Args:
            batch: the examples.
            divisors: (L,) norms to divide each layer by, in place of every example's own:
                the tokens of a query are divided by the norms of the whole query, so that
                their rows add up to its row.
        """
        self._check(batch.input_ids)
        ids, labels = batch.input_ids.to(self._device), batch.labels.to(self._device)
        if divisors is not None:
            divisors = divisors.to(self._device)
        self._sketcher.start(len(ids), divisors)
        with captured(self.model, self._targets, self._sketcher.consume):
            row, losses = self._token_losses(ids, labels)
            losses.sum().backward()
        blocks, norm = self._sketcher.finish()
        losses = losses.detach()
        counts = torch.bincount(row, minlength=len(ids))
        loss = torch.zeros(len(ids), device=self._device).index_add_(0, row, losses)
        return GradientRows(
            blocks.cpu(),
            norm.cpu(),
            loss.cpu(),
            counts.cpu(),
            [-part for part in losses.cpu().split(counts.tolist())],
        )

    def _check(self, ids: torch.Tensor) -> None:
        """Refuse what the embeddings cannot look up, before a device fails over it.

        Raises:
            InputError: a token or a length that the model does not know.
        """
        if int(ids.max()) >= self._vocabulary:
            raise InputError(
                f"token {int(ids.max())} is beyond the model's {self._vocabulary:,}: tokenizer "
                "and model do not belong together",
                hint="correct [model] base or the checkpoint's path in rin.toml",
            )
        if self._positions is not None and ids.shape[1] > self._positions:
            raise InputError(
                f"a text of {ids.shape[1]:,} tokens is longer than the model's "
                f"{self._positions:,} positions",
                hint=f"set [data] max_tokens = {self._positions} in rin.toml",
            )

    def _token_losses(
        self, ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the example number and the loss of each labelled token, in reading order.

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
        targets = labels[:, 1:][:, positions][mask]
        losses = F.cross_entropy(logits[mask].float(), targets, reduction="none")
        return mask.nonzero()[:, 0], losses

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._compute == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def _absolute_positions(model: nn.Module) -> int | None:
    """How many positions a model with learnt position embeddings has, else None."""
    known = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(known, int):
        return None
    # OPT keeps two more than it says.
    sizes = (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    return known if any(known <= size <= known + 2 for size in sizes) else None


def _inner(model: nn.Module) -> nn.Module:
    get = getattr(model, "get_base_model", None)
    inner = get() if get else model
    assert isinstance(inner, nn.Module)
    return inner


class _Sketching:
    """What both sketchers share: whose norms the layers are divided by."""

    _divisors: torch.Tensor | None

    def _divisor(self, number: int, norm: torch.Tensor) -> torch.Tensor:
        return norm if self._divisors is None else self._divisors[number].expand_as(norm)


class _TensorSketchRows(_Sketching):
    """One TensorSketch block per layer, side by side."""

    def __init__(
        self, targets: list[Target], spec: GradientSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers = tuple(target.layer for target in targets)
        try:
            sizes = block_sizes(spec.dimensions, [layer.size for layer in layers])
        except ValueError as error:
            raise InputError(
                f"[gradient] {error}: each needs at least 16", hint="raise dimensions in rin.toml"
            ) from None
        self.layout = RowLayout(spec, layers, tuple(sizes))
        self._device = device
        self._blocks = [
            BlockSketch(
                layer.name, layer.out_features, layer.in_features, size, spec.seed, device, dtype
            )
            for layer, size in zip(layers, sizes, strict=True)
        ]
        self._starts = [sum(sizes[:n]) for n in range(len(sizes))]

    def start(self, batch: int, divisors: torch.Tensor | None) -> None:
        self._divisors = divisors
        self._rows = torch.zeros(batch, self.layout.dimensions, device=self._device)
        self._norms = torch.zeros(batch, len(self._blocks), device=self._device)

    def consume(self, number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        sketch, norm = self._blocks[number](x, d)
        start = self._starts[number]
        self._rows[:, start : start + sketch.shape[1]] = _divided(
            sketch, self._divisor(number, norm)
        )
        self._norms[:, number] = norm

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rows, self._norms


class _OporpRows(_Sketching):
    """The paper's procedure over the concatenated, layer-normalised gradient."""

    def __init__(self, targets: list[Target], spec: GradientSpec, device: torch.device) -> None:
        layers = tuple(target.layer for target in targets)
        self.layout = RowLayout(spec, layers, (spec.dimensions,))
        self._device = device
        self._oporp = Oporp(self.layout.parameters, spec.dimensions, spec.rounds, spec.seed, device)
        self._starts = [sum(layer.size for layer in layers[:n]) for n in range(len(layers))]

    def start(self, batch: int, divisors: torch.Tensor | None) -> None:
        self._divisors = divisors
        self._gradient = torch.zeros(batch, self.layout.parameters, device=self._device)
        self._norms = torch.zeros(batch, len(self.layout.layers), device=self._device)

    def consume(self, number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        gradient = torch.bmm(d.float().transpose(1, 2), x.float()).flatten(1)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        start = self._starts[number]
        self._gradient[:, start : start + gradient.shape[1]] = _divided(
            gradient, self._divisor(number, norm)
        )
        self._norms[:, number] = norm

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        # One at a time: the shuffles copy the whole gradient forty times.
        rows = [self._oporp(self._gradient[n : n + 1]) for n in range(len(self._gradient))]
        del self._gradient
        return torch.cat(rows), self._norms


def _divided(values: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Divide rows by their norms; a zero gradient stays zero."""
    return values / torch.where(norm > 0, norm, 1.0)[:, None] * (norm > 0)[:, None]
