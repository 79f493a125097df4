"""Exact scores: computed from whole gradients, not read from sketches.

For a direction V in weight space the influence on every token of a sequence is a
directional derivative of its per-token losses, and one forward-mode pass gives all of
them (DESIGN 4.4). The score of query q and example g is symmetric in both,
sum_l a_l b_l <P_l q_l, g_l>, so it is taken three times, each in one pass a batch:

- along V = a P q, by inner products with the captured gradients of the examples: the
  totals, layer by layer, and the examples' true norms, which give b;
- along a b P g, by forward mode through the query: each generated token's share;
- along a b P q, by forward mode through the example: each training token's share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rapidin_cli.data.examples import Example, one_token_queries
from rapidin_cli.gradients.directions import Direction, LayerGradient
from rapidin_cli.gradients.passes import NoForwardModeError, Passes, as_batch
from rapidin_cli.gradients.scaling import reciprocal
from rapidin_cli.influence.preconditioners import Preconditioner
from rapidin_cli.influence.queries import Query, QueryGradient
from rapidin_cli.influence.score import Array, Score

# Numbers of gradients that are kept of a batch of examples, 4 bytes each.
_KEPT_NUMBERS = 2**27


@dataclass(frozen=True)
class Field:
    """Directions of all layers for B sequences: factors[b, l] V_l or factors[b, l] V_bl."""

    directions: Sequence[Direction]
    factors: torch.Tensor

    def along(self, number: int, inputs: torch.Tensor) -> torch.Tensor:
        """Return the change of layer `number`'s outputs, (B, T, O)."""
        change = self.directions[number].along(inputs.float())
        return change * self.factors[:, number, None, None]

    def pick(self, row: int) -> Field:
        """Return the field of one of the B sequences."""
        chosen = slice(row, row + 1)
        return Field([d.pick(chosen) for d in self.directions], self.factors[chosen])


@dataclass
class ExactScores:
    """Exact scores of m examples.

    Attributes:
        layers: (m, L) each layer's part of the total.
        tokens: (m, T) each explained token's; (m, 0) if not wanted.
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
        batch_tokens: padded tokens of a batch.

    Attributes:
        forward_mode: false once the model turns out to have an operator without a
            forward-mode derivative: then each token costs a backward pass.
    """

    passes: Passes
    score: Score
    preconditioner: Preconditioner | None
    query: Query
    gradient: QueryGradient
    batch_tokens: int
    forward_mode: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        device = self.passes.device
        self._inverse = reciprocal(self.score.divisors(self.gradient.norm.to(device)))
        self._directions = [
            self._changed(number, part).scaled(self._inverse[number : number + 1])
            for number, part in enumerate(self.gradient.layers)
        ]

    def _changed(self, number: int, gradient: LayerGradient) -> Direction:
        if self.preconditioner is None:
            return gradient
        return self.preconditioner.direction(number, gradient)

    def scores(
        self,
        examples: Sequence[Example],
        *,
        tokens: bool,
        progress: Callable[[int], None] = lambda _: None,
    ) -> ExactScores:
        """Score examples, in order; `progress` is called with how many more are done."""
        layers = torch.zeros(len(examples), len(self._directions))
        parts = torch.zeros(len(examples), self.query.explained if tokens else 0)
        kept = torch.zeros_like(layers)
        for chosen in self._batches(examples):
            batch = [examples[n] for n in chosen]
            inner, factors, gradients = self._capture(batch, keep=tokens)
            layers[chosen] = (inner * factors).cpu()
            kept[chosen] = factors.cpu()
            if tokens:
                field = Field(gradients, factors * self._inverse)
                parts[chosen] = self._query_tokens(field).cpu()
            progress(len(batch))
        return ExactScores(layers, parts, kept)

    def _capture(
        self, examples: Sequence[Example], *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, list[Direction]]:
        """Return <V_l, g_bl> and b (B, L), and P g_l for each layer if they are to be kept."""
        shape = (len(examples), len(self._directions))
        inner = torch.zeros(shape, device=self.passes.device)
        norm = torch.zeros_like(inner)
        kept: dict[int, Direction] = {}

        def consume(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
            x, d = x.float(), d.float()
            inner[:, number] = (d * self._directions[number].along(x)).sum((1, 2))
            gradient = LayerGradient.of(x, d)
            norm[:, number] = gradient.norm()
            if keep:
                kept[number] = self._changed(number, gradient)

        self.passes.backward(as_batch(examples), consume)
        factors = reciprocal(self.score.divisors(norm))
        return inner, factors, [kept[n] for n in sorted(kept)]

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
        for chosen in self._batches(examples):
            batch = [examples[n] for n in chosen]
            derivatives = self._derivatives(batch, Field(self._directions, factors[chosen]))
            found.update(zip(chosen, (part.cpu() for part in derivatives), strict=True))
        return [found[n] for n in range(len(examples))]

    def cells(self, example: Example, factors: torch.Tensor) -> torch.Tensor:
        """Return the influence of each learnt token on each explained one, (T, S).

        A forward-mode pass through the example for each explained token.

        Args:
            factors: (L,) of this example, as `scores` found them.
        """
        factors = factors.to(self.passes.device)[None]
        rows = []
        for part, sign in self.query.parts:
            for single in one_token_queries(part):
                gradients: dict[int, Direction] = {}

                def keep(
                    number: int,
                    x: torch.Tensor,
                    d: torch.Tensor,
                    gradients: dict[int, Direction] = gradients,
                ) -> None:
                    gradients[number] = self._changed(number, LayerGradient.of(x, d))

                self.passes.backward(as_batch([single]), keep)
                directions = [gradients[n] for n in sorted(gradients)]
                field = Field(directions, sign * factors * self._inverse)
                rows.append(self._derivatives([example], field)[0].cpu())
        return torch.stack(rows)

    def _derivatives(self, examples: Sequence[Example], field: Field) -> list[torch.Tensor]:
        """Return the derivative of each labelled token's loss along the field."""
        if self.forward_mode:
            try:
                return self.passes.tangents(as_batch(examples), field.along)
            except NoForwardModeError:
                self.forward_mode = False
        return [self._by_backward(example, field.pick(row)) for row, example in enumerate(examples)]

    def _by_backward(self, example: Example, field: Field) -> torch.Tensor:
        """Do what forward mode does, with one backward pass per token, several at a time."""
        singles = one_token_queries(example)
        done = []
        for start in range(0, len(singles), 8):
            batch = as_batch(singles[start : start + 8])
            inner = torch.zeros(len(batch.input_ids), device=self.passes.device)

            def consume(
                number: int, x: torch.Tensor, d: torch.Tensor, inner: torch.Tensor = inner
            ) -> None:
                inner += (d.float() * field.along(number, x)).sum((1, 2))

            self.passes.backward(batch, consume)
            done.append(inner)
        return torch.cat(done)

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Yield the numbers of examples of similar length, as many as should fit in memory."""
        order = sorted(range(len(examples)), key=lambda n: -len(examples[n].input_ids))
        asked = max(len(part.input_ids) for part, _ in self.query.parts)
        while order:
            longest = max(len(examples[order[0]].input_ids), asked)
            size = max(1, min(self.batch_tokens // longest, _KEPT_NUMBERS // self._kept(longest)))
            yield order[:size]
            order = order[size:]

    def _kept(self, length: int) -> int:
        """Numbers that are kept of an example's gradient."""
        return sum(
            min(length * (t.layer.in_features + t.layer.out_features), t.layer.size)
            for t in self.passes.targets
        )
