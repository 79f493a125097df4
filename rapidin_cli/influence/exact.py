"""Exact scores: computed from whole gradients, not read from sketches.

The score of query q and example g is symmetric in both, sum_l a_l b_l <P_l q_l, g_l>:

- where the gradients of the query and of its tokens fit in memory, as those of an adapter do,
  one backward pass of an example gives its products with all of them;
- else totals are taken by products with the captured gradients of the examples, along
  V = a P q, and each generated token's share by forward mode through the query, along a b P g.
  For a direction V in weight space the influence on every token of a sequence is a directional
  derivative of its per-token losses, and one forward-mode pass gives all of them (DESIGN 4.4);
- each training token's share, by forward mode through the example, along a b P q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rapidin_cli.data.examples import Example
from rapidin_cli.gradients.capture.sides import Side, WideSide, floats
from rapidin_cli.gradients.directions import WHOLE_NUMBERS, Direction, LayerGradient, PackedMatrix
from rapidin_cli.gradients.memory import BatchBytes, in_halves, make_room
from rapidin_cli.gradients.passes import NoForwardModeError, Passes, as_batch
from rapidin_cli.gradients.scaling import reciprocal
from rapidin_cli.influence.preconditioners import Preconditioner
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.query_gradients import QueryGradient, TokenMatrices, gradient_bytes
from rapidin_cli.influence.score import Array, Score

# Bytes of gradients that are kept of a batch of examples.
_KEPT_BYTES = 2**27
# A layer whose direction is no larger is multiplied as a matrix.
_DENSE = 2**18


@dataclass(frozen=True)
class Field:
    """Directions of all layers for B sequences: factors[b, l] V_l or factors[b, l] V_bl."""

    directions: Sequence[Direction]
    factors: torch.Tensor

    def along(
        self,
        number: int,
        inputs: torch.Tensor,
        row: int | None = None,
        part: slice | None = None,
    ) -> torch.Tensor:
        """Return the change of layer `number`'s outputs; see `Perturbation`."""
        direction, factors = self.directions[number], self.factors[:, number, None, None]
        if row is not None:
            some = slice(row, row + 1)
            direction = direction.pick(some)
            factors = factors if len(factors) == 1 else factors[some]
        if inputs.is_floating_point():
            return direction.along(inputs.float(), part) * factors
        return direction.of_words(inputs) * factors

    def pick(self, row: int) -> Field:
        """Return the field of one of the B sequences."""
        chosen = slice(row, row + 1)
        return Field([d.pick(chosen) for d in self.directions], self.factors[chosen])


@dataclass
class ExactScores:
    """Exact scores of m examples.

    Attributes:
        layers: (m, L) each layer's part of the total.
        tokens: (m, T) each explained token's; NaN if not known.
        factors: (m, L) b, the examples' own divisors inverted: `training_tokens` needs them.
    """

    layers: torch.Tensor
    tokens: torch.Tensor
    factors: torch.Tensor

    @property
    def totals(self) -> torch.Tensor:
        """(m,)"""
        return self.layers.sum(1)

    @property
    def table(self) -> Array:
        """Totals and tokens side by side, (m, 1 + T)."""
        return torch.cat([self.totals[:, None], self.tokens], 1).numpy()


@dataclass
class ExactScorer:
    """Scores examples against one query, exactly.

    Args:
        passes: the model.
        score: normalisation.
        preconditioner: P; None for the unit matrix.
        query, gradient: what is asked.
        limit: padded tokens of a batch.
        takes: memory of a batch, made room for before each.
        matrices: the gradients of the query's tokens; None if they do not fit.
        alone: run each example by itself, so that no rounding depends on what is beside it, and
            a question has the same answer whatever the clock and the memory were.

    Attributes:
        forward_mode: false once the model turns out to have an operator without a
            forward-mode derivative: then each token costs a backward pass.
    """

    passes: Passes
    score: Score
    preconditioner: Preconditioner | None
    query: Query
    gradient: QueryGradient
    limit: int
    takes: BatchBytes | None = None
    matrices: TokenMatrices | None = None
    alone: bool = False
    forward_mode: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        device = self.passes.device
        self._packs = sum(t.layer.size for t in self.passes.targets) > WHOLE_NUMBERS
        self._inverse = reciprocal(self.score.divisors(self.gradient.norm.to(device)))
        self._directions = [
            self._along(number, part) for number, part in enumerate(self.gradient.layers)
        ]

    def _along(self, number: int, gradient: LayerGradient) -> Direction:
        """V of a layer; a small one as a matrix, so that P is used once, not for every example."""
        direction = self._changed(number, gradient).scaled(self._inverse[number : number + 1])
        if isinstance(direction, PackedMatrix):
            return direction
        target = self.passes.targets[number]
        small = target.layer.size <= _DENSE or target.wide
        return LayerGradient.of_matrix(direction.dense()) if small else direction

    def _changed(self, number: int, gradient: LayerGradient) -> Direction:
        """P g of a layer; of a large model as a matrix, because P is larger than that."""
        if self.preconditioner is None:
            return gradient
        direction = self.preconditioner.direction(number, gradient)
        if self._packs and not self.preconditioner.on_rows:
            return PackedMatrix.of(direction.dense())
        return direction

    def scores(
        self,
        examples: Sequence[Example],
        *,
        tokens: bool,
        progress: Callable[[int], None] = lambda _: None,
    ) -> ExactScores:
        """Score examples, in order; `progress` is called with how many more are done.

        Args:
            tokens: whether every explained token is scored, even at the price of another pass.
        """
        layers = torch.zeros(len(examples), len(self._directions))
        parts = torch.full((len(examples), self.query.explained), torch.nan)
        kept = torch.zeros_like(layers)

        def score(chosen: list[int]) -> None:
            found = self._score([examples[n] for n in chosen], forward=forward)
            layers[chosen], kept[chosen] = found.layers.cpu(), found.factors.cpu()
            parts[chosen] = found.tokens.cpu()
            progress(len(chosen))

        forward = tokens and self.matrices is None
        self._in_batches(examples, score, keep=forward)
        return ExactScores(layers, parts, kept)

    def _score(self, examples: Sequence[Example], *, forward: bool) -> ExactScores:
        """Score a batch by a backward pass; with `forward`, tokens by forward mode after it."""
        shape = len(examples), len(self._directions)
        inner = torch.zeros(shape, device=self.passes.device)
        norm = torch.zeros_like(inner)
        missing = torch.nan if self.matrices is None else 0.0
        tokens = inner.new_full((len(examples), self.query.explained), missing)
        kept: dict[int, Direction] = {}
        layered = self.score.normalise == "layer"

        def consume(number: int, x: torch.Tensor, d: Side) -> None:
            x, d = floats(x, d)
            gradient = LayerGradient.of(x, d)
            norm[:, number] = gradient.norm()
            inner[:, number] = self._inner(number, gradient, x, d)
            if forward:
                kept[number] = self._changed(number, gradient)
            if self.matrices is not None:
                part = self.matrices.products(number, gradient.dense())
                tokens.add_(part * reciprocal(norm[:, number, None]) if layered else part)

        self.passes.backward(as_batch(examples), consume)
        factors = reciprocal(self.score.divisors(norm))
        if forward:
            field = Field([kept[n] for n in sorted(kept)], factors * self._inverse)
            tokens = self._query_tokens(field)
        elif not layered:
            tokens = tokens * factors[:, :1]
        return ExactScores(inner * factors, tokens, factors)

    def _inner(
        self, number: int, gradient: LayerGradient, x: torch.Tensor, d: Side
    ) -> torch.Tensor:
        """Return <V_l, g_bl>, (B,)."""
        direction = self._directions[number]
        if isinstance(d, WideSide):
            return (d.along(direction.dense()[0]) * x).sum((1, 2))
        if isinstance(direction, LayerGradient) and None not in (direction.matrix, gradient.matrix):
            return gradient.dense().flatten(1) @ direction.dense().flatten()
        return (d * direction.along(x)).sum((1, 2))

    def _query_tokens(self, field: Field) -> torch.Tensor:
        """Return each example's influence on each explained token, (B, T)."""
        count = len(field.factors)
        columns = []
        for example, sign in self.query.parts:
            copies = [example] * count
            columns.append(sign * torch.stack(self._derivatives(copies, field)))
        return torch.cat(columns, 1)

    def training_tokens(
        self, examples: Sequence[Example], factors: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return, for each example, the influence of each of its learnt tokens.

        Args:
            factors: (m, L) of these examples, as `scores` found them.
        """
        factors = factors.to(self.passes.device)
        found: dict[int, torch.Tensor] = {}

        def differentiate(chosen: list[int]) -> None:
            batch = [examples[n] for n in chosen]
            derivatives = self._derivatives(batch, Field(self._directions, factors[chosen]))
            found.update(zip(chosen, (part.cpu() for part in derivatives), strict=True))

        self._in_batches(examples, differentiate)
        return [found[n] for n in range(len(examples))]

    def cells(self, example: Example, factors: torch.Tensor) -> torch.Tensor:
        """Return the influence of each learnt token on each explained one, (T, S).

        A forward-mode pass through the example for each explained token, whose gradients take a
        backward pass each where they do not fit in memory.

        Args:
            factors: (L,) of this example, as `scores` found them.
        """
        factors = factors.to(self.passes.device)[None]
        fields = self._token_fields(factors)
        return torch.stack([self._derivatives([example], field)[0].cpu() for field in fields])

    def _token_fields(self, factors: torch.Tensor) -> Iterator[Field]:
        """Yield, for each explained token of the query, its direction a b P g."""
        if self.matrices is not None:
            for token in range(self.query.explained):
                layers = range(len(self._directions))
                parts = [self.matrices.of(n, slice(token, token + 1)) for n in layers]
                yield Field([LayerGradient.of_matrix(part) for part in parts], factors)
            return
        for part, sign in self.query.parts:
            gradients: dict[int, Direction] = {}

            def keep(
                number: int,
                x: torch.Tensor,
                d: Side,
                gradients: dict[int, Direction] = gradients,
            ) -> None:
                gradients[number] = self._changed(number, LayerGradient.of(x, d))

            for _ in self.passes.each_token(as_batch([part]), keep):
                directions = [gradients[n] for n in sorted(gradients)]
                yield Field(directions, sign * factors * self._inverse)

    def _derivatives(self, examples: Sequence[Example], field: Field) -> list[torch.Tensor]:
        """Return the derivative of each labelled token's loss along the field."""
        if self.forward_mode:
            try:
                return self.passes.tangents(as_batch(examples), field.along)
            except NoForwardModeError:
                self.forward_mode = False
        return [self._by_backward(example, field.pick(row)) for row, example in enumerate(examples)]

    def _by_backward(self, example: Example, field: Field) -> torch.Tensor:
        """Do what forward mode does, with one backward pass per token."""
        inner = torch.zeros((), device=self.passes.device)

        def consume(number: int, x: torch.Tensor, d: Side) -> None:
            if isinstance(d, WideSide):
                whole = field.directions[number].dense()[0] * field.factors[0, number]
                inner.add_((d.along(whole) * x).sum())
            else:
                inner.add_((d.float() * field.along(number, x)).sum())

        done = []
        for _ in self.passes.each_token(as_batch([example]), consume):
            done.append(inner.clone())
            inner.zero_()
        return torch.stack(done)

    def _in_batches(
        self, examples: Sequence[Example], run: Callable[[list[int]], None], *, keep: bool = False
    ) -> None:
        """Run batches of examples, and what does not fit in memory after all in halves."""
        for chosen in self._batches(examples, keep=keep):
            longest = max(len(examples[n].input_ids) for n in chosen)
            if self.takes is not None:
                make_room(self.passes, self.takes.of(len(chosen) * longest))
            if in_halves(chosen, run):
                self.limit = max(16, self.limit // 2)

    def _batches(self, examples: Sequence[Example], *, keep: bool) -> Iterator[list[int]]:
        """Yield the numbers of examples of similar length, as many as should fit in memory.

        Args:
            keep: whether gradients are kept and the query is run beside them.
        """
        order = sorted(range(len(examples)), key=lambda n: -len(examples[n].input_ids))
        asked = max(len(part.input_ids) for part, _ in self.query.parts)
        while order:
            longest = examples[order[0]]
            size = 1 if self.alone else max(1, self.limit // len(longest.input_ids))
            if keep:
                fitting = _KEPT_BYTES // gradient_bytes(self.passes, longest)
                size = max(1, min(size, self.limit // asked, fitting))
            yield order[:size]
            order = order[size:]
