"""The gradient of a query: of the whole, and of each of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rapidin_cli.data.examples import Example
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Passes, as_batch
from rapidin_cli.gradients.scaling import reciprocal
from rapidin_cli.influence.preconditioners import Preconditioner
from rapidin_cli.influence.queries import Query


@dataclass(frozen=True)
class QueryGradient:
    """The gradient of a query.

    Attributes:
        layers: one gradient for each layer; with a contrast, that of the difference.
        norm: (L,) their norms.
        losses: of each part, the loss of each explained token, nats.
    """

    layers: list[LayerGradient]
    norm: torch.Tensor
    losses: list[list[float]]

    @property
    def loss(self) -> float:
        """Summed over the explained tokens of the response, nats."""
        return sum(self.losses[0])


@dataclass(frozen=True)
class TokenGradients:
    """The gradients of a query's explained tokens, which add up to its own.

    Attributes:
        directions: (T, W), what cached rows are multiplied by, on the CPU.
        matrices: of each layer (T, O, I), P applied, divided as the query is; None if they do
            not fit in memory.
    """

    directions: torch.Tensor
    matrices: list[torch.Tensor] | None


def query_gradient(passes: Passes, query: Query) -> QueryGradient:
    """Compute the gradient of a query's loss, or of the difference of two."""
    examples, signs = zip(*query.parts, strict=True)
    layers: dict[int, LayerGradient] = {}

    def consume(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        # Both responses as one sequence: the gradient sums over its tokens.
        layers[number] = LayerGradient.of(x.flatten(0, 1)[None], d.flatten(0, 1)[None])

    losses = passes.backward(as_batch(examples), consume, torch.tensor(signs))
    ordered = [layers[number] for number in sorted(layers)]
    return QueryGradient(
        ordered,
        torch.cat([layer.norm() for layer in ordered]).cpu(),
        [[float(value) for value in part] for part in losses],
    )


def token_gradients(
    engine: GradientEngine,
    passes: Passes,
    query: Query,
    divisors: torch.Tensor,
    inverse: Preconditioner | None,
    *,
    keep: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> TokenGradients:
    """Compute the gradients of a query's explained tokens, one backward pass for each.

    Args:
        divisors: (L,) of the whole query, so that tokens add up to it.
        inverse: P; None for the unit matrix.
        keep: whether the gradients themselves fit in memory.
        progress: called with how many more tokens are done.
    """
    make = _kept if keep else _directions
    found = make(engine, passes, query, divisors, inverse, progress)
    if inverse is not None and inverse.on_rows:
        return TokenGradients(inverse.apply_to_rows(found.directions), found.matrices)
    return found


def _kept(
    engine: GradientEngine,
    passes: Passes,
    query: Query,
    divisors: torch.Tensor,
    inverse: Preconditioner | None,
    progress: Callable[[int], None],
) -> TokenGradients:
    device = passes.device
    matrices = [
        torch.empty(query.explained, t.layer.out_features, t.layer.in_features, device=device)
        for t in passes.targets
    ]
    done: list[float] = []
    for example, sign in query.parts:

        def consume(number: int, x: torch.Tensor, d: torch.Tensor, sign: float = sign) -> None:
            torch.matmul(d[0].float().T * sign, x[0].float(), out=matrices[number][len(done)])

        for loss in passes.each_token(as_batch([example]), consume):
            done.append(loss)
            progress(1)
    if inverse is not None and not inverse.on_rows:
        # Layer by layer, for all tokens: P is much larger than they are.
        for number, layer in enumerate(matrices):
            matrices[number] = inverse.change(number, layer)
    directions = engine.probe_matrices(matrices, divisors)
    factors = reciprocal(divisors.to(device))
    for number, layer in enumerate(matrices):
        changed = layer
        if inverse is not None and inverse.on_rows:
            changed = inverse.change(number, layer)
        matrices[number] = changed.mul_(factors[number])
    return TokenGradients(directions, matrices)


def _directions(
    engine: GradientEngine,
    passes: Passes,
    query: Query,
    divisors: torch.Tensor,
    inverse: Preconditioner | None,
    progress: Callable[[int], None],
) -> TokenGradients:
    change = inverse.change if inverse is not None and not inverse.on_rows else None
    rows = []
    for example, sign in query.parts:
        for row in engine.each_direction(passes, as_batch([example]), divisors, sign, change):
            rows.append(row)
            progress(1)
    return TokenGradients(torch.stack(rows), None)


def gradient_bytes(passes: Passes, example: Example) -> int:
    """Return the memory of the whole gradient of an example, as `LayerGradient` keeps it."""
    length = len(example.input_ids)
    return 4 * sum(
        min(length * (t.layer.in_features + t.layer.out_features), t.layer.size)
        for t in passes.targets
    )
