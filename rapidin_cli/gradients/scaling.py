"""Dividing gradients by norms."""

import torch


def divided(values: torch.Tensor, norm: torch.Tensor, divisor: torch.Tensor | None) -> torch.Tensor:
    """Divide (B, ...) values by their norms (B,), or all by `divisor` (); by zero gives zero."""
    by = norm if divisor is None else divisor.expand_as(norm)
    return values * reciprocal(by).view(-1, *[1] * (values.dim() - 1))


def reciprocal(norm: torch.Tensor) -> torch.Tensor:
    """Return 1 / norm, and 0 where the norm is 0."""
    return torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0)
