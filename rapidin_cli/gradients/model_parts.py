"""What passes have to know, or to change for a while, inside a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextlib.contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Have the blocks of a forward pass keep their inputs alone; backward runs each again.

    Only blocks that the model's authors made for that: others keep everything. Inputs of watched
    layers stay, see `capture`.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for block in blocks:
        # Nothing in eval mode is random.
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def absolute_positions(model: nn.Module) -> int | None:
    """How many positions a model with learnt position embeddings has, else None."""
    known = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(known, int):
        return None
    # OPT keeps two more than it says.
    sizes = (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    return known if any(known <= size <= known + 2 for size in sizes) else None


@contextlib.contextmanager
def plain_experts(model: nn.Module) -> Iterator[None]:
    """Have a mixture's experts computed one after the other."""
    before = getattr(getattr(model, "config", None), "_experts_implementation", None)
    choose: Any = getattr(model, "set_experts_implementation", None)
    if before is None or choose is None:
        yield
        return
    choose("eager")
    try:
        yield
    finally:
        choose(before)


def vocabulary(model: nn.Module) -> int:
    """Tokens that the model's input embedding knows, whatever an adapter put around it."""
    table = model.get_input_embeddings()  # type: ignore[operator]
    return next(m.num_embeddings for m in table.modules() if isinstance(m, nn.Embedding))


def inner(model: nn.Module) -> nn.Module:
    """The model below an adapter."""
    get = getattr(model, "get_base_model", None)
    found = get() if get else model
    assert isinstance(found, nn.Module)
    return found


def weight_bytes(model: nn.Module) -> int:
    """Memory of a model's weights and buffers; tied ones count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in (*model.parameters(), *model.buffers())}  # fmt: skip
    return sum(storages.values())
