"""The gradient of a query: of the whole, and of each of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rapidin_cli.data.examples import Example
from rapidin_cli.gradients.capture.sides import Side, WideSide, joined
from rapidin_cli.gradients.capture.watching import Consumer
from rapidin_cli.gradients.directions import WHOLE_NUMBERS, LayerGradient
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Passes, as_batch
from rapidin_cli.gradients.scaling import reciprocal
from rapidin_cli.influence.preconditioners import Preconditioner
from rapidin_cli.influence.queries import Query

# Tokens whose gradients are sketched at once; numbers of those that curvature is put on.
_TOGETHER, _CHANGED_NUMBERS = 8, 2**25


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


@dataclass(frozen=True)
class TokenMatrices:
    """The gradients of T tokens, P applied, divided as the whole query is.

    Attributes:
        layers: of each layer (T, O, I), float32, or float16 times `scales`. What half precision
            loses is as small as what float32 loses in a pass: errors of many numbers cancel.
        scales: (L, T).
    """

    layers: list[torch.Tensor]
    scales: torch.Tensor

    def of(self, number: int, tokens: slice = slice(None)) -> torch.Tensor:
        """Return the matrices of a layer, (T, O, I) float32."""
        scales = self.scales[number, tokens, None, None]
        return self.layers[number][tokens].float() * scales

    def products(self, number: int, gradients: torch.Tensor) -> torch.Tensor:
        """Return the products of a layer's matrices with gradients (B, O, I): (B, T)."""
        matrices = self.layers[number].float().flatten(1)
        return (gradients.flatten(1) @ matrices.T) * self.scales[number]


@dataclass(frozen=True)
class TokenGradients:
    """The gradients of a query's explained tokens, which add up to its own.

    Attributes:
        directions: (T, W), what cached rows are multiplied by, on the CPU.
        matrices: the gradients themselves; None if they do not fit in memory.
    """

    directions: torch.Tensor
    matrices: TokenMatrices | None


def query_gradient(passes: Passes, query: Query) -> QueryGradient:
    """Compute the gradient of a query's loss, or of the difference of two."""
    examples, signs = zip(*query.parts, strict=True)
    layers: dict[int, LayerGradient] = {}

    def consume(number: int, x: torch.Tensor, d: Side) -> None:
        # Both responses as one sequence: the gradient sums over its tokens.
        layers[number] = LayerGradient.of(*joined(x, d))

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
    matrices = None
    if keep:
        packer = _Packer(engine, passes, query.explained, divisors, inverse)
        for example, sign in query.parts:
            for _ in passes.each_token(as_batch([example]), packer.taking(sign)):
                packer.next()
                progress(1)
        directions, matrices = packer.finish()
    else:
        change = inverse.change if inverse is not None and not inverse.on_rows else None
        rows = []
        for example, sign in query.parts:
            batch = as_batch([example])
            for row in engine.each_direction(passes, batch, divisors, sign, change):
                rows.append(row)
                progress(1)
        directions = torch.stack(rows)
    if inverse is not None and inverse.on_rows:
        directions = inverse.apply_to_rows(directions)
    return TokenGradients(directions, matrices)


class _Packer:
    """Gathers gradients of single tokens; a few at a time are changed, sketched and packed."""

    def __init__(
        self,
        engine: GradientEngine,
        passes: Passes,
        tokens: int,
        divisors: torch.Tensor,
        inverse: Preconditioner | None,
    ) -> None:
        self._engine = engine
        self._divisors = divisors
        self._factors = reciprocal(divisors.to(passes.device))
        self._inverse = inverse
        device, sizes = passes.device, [t.layer for t in passes.targets]
        dtype = _kept_dtype(passes, tokens)
        self._layers = [
            torch.empty(tokens, n.out_features, n.in_features, dtype=dtype, device=device)
            for n in sizes
        ]
        self._scales = torch.ones(len(sizes), tokens, device=device)
        count = _together(passes, tokens, changed=inverse is not None)
        self._buffers = [
            torch.empty(count, n.out_features, n.in_features, device=device) for n in sizes
        ]
        self._directions: list[torch.Tensor] = []
        self._filled = self._done = 0

    def taking(self, sign: float) -> Consumer:
        """Return what takes the layers of a token, whose loss counts with a sign."""

        def take(number: int, x: torch.Tensor, d: Side) -> None:
            into = self._buffers[number][self._filled]
            if isinstance(d, WideSide):
                into.copy_(LayerGradient.of(x * sign, d).dense()[0])
            else:
                torch.matmul(d[0].float().T * sign, x[0].float(), out=into)

        return take

    def next(self) -> None:
        """End a token."""
        self._filled += 1
        if self._filled == len(self._buffers[0]):
            self._pack()

    def _pack(self) -> None:
        inverse, where = self._inverse, slice(self._done, self._done + self._filled)
        gradients = [buffer[: self._filled] for buffer in self._buffers]
        # Layer by layer, for several tokens: P is much larger than they are.
        if inverse is not None and not inverse.on_rows:
            gradients = [
                inverse.change(n, LayerGradient.of_matrix(layer))
                for n, layer in enumerate(gradients)
            ]
        self._directions.append(self._engine.probe_matrices(gradients, self._divisors))
        for number, layer in enumerate(gradients):
            changed = layer
            if inverse is not None and inverse.on_rows:
                changed = inverse.change(number, LayerGradient.of_matrix(layer))
            scales = torch.ones(len(changed), device=changed.device)
            if self._layers[number].dtype == torch.float16:
                scales = changed.abs().amax((1, 2)).clamp_min(1e-30)
            self._layers[number][where] = (changed / scales[:, None, None]).to(
                self._layers[number].dtype
            )
            self._scales[number, where] = scales * self._factors[number]
        self._done, self._filled = where.stop, 0

    def finish(self) -> tuple[torch.Tensor, TokenMatrices]:
        """Return the directions (T, W), and the matrices."""
        if self._filled:
            self._pack()
        return torch.cat(self._directions), TokenMatrices(self._layers, self._scales)


def _together(passes: Passes, tokens: int, *, changed: bool) -> int:
    """How many tokens are packed at once: P may have to be read anew each time."""
    numbers = sum(t.layer.size for t in passes.targets)
    return min(tokens, max(_TOGETHER, _CHANGED_NUMBERS // numbers if changed else 0))


def _kept_dtype(passes: Passes, tokens: int) -> torch.dtype:
    numbers = tokens * sum(t.layer.size for t in passes.targets)
    return torch.float32 if numbers <= WHOLE_NUMBERS else torch.float16


def token_matrices_bytes(passes: Passes, tokens: int) -> int:
    """Return the memory of the gradients of this many tokens, as `token_gradients` keeps them."""
    numbers = sum(t.layer.size for t in passes.targets)
    packed = tokens * numbers * _kept_dtype(passes, tokens).itemsize
    return packed + 4 * numbers * _together(passes, tokens, changed=True)


def gradient_bytes(passes: Passes, example: Example) -> int:
    """Return the memory of the whole gradient of an example, as `LayerGradient` keeps it."""
    length = len(example.input_ids)
    return 4 * sum(
        min(length * (t.layer.in_features + t.layer.out_features), t.layer.size)
        for t in passes.targets
    )
