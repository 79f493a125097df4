"""One query's exact scores: what is likeliest to matter first, for as long as there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rapidin_cli.data.examples import Example
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.panel import Panel
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.ranking import Ranked, extremes
from rapidin_cli.influence.score import Array
from rapidin_cli.influence.shortlist import GROWTH, Shortlist, doubtful, fit
from rapidin_cli.output.stages import StageProgress

# Between two looks at the clock: seconds of work, and examples at most.
_STEP_SECONDS, _STEP_EXAMPLES = 3.0, 64
# What is shown of the best may take this much of the budget on top of it.
_SHOWN = 0.5
# Examples that are scored before it is decided anew which are the likeliest.
_TURN = 16


@dataclass(frozen=True)
class Exactness:
    """What exact scoring found.

    Attributes:
        shortlist: how many examples were scored exactly.
        doubtful: how many others may belong to the best, by the measured error of sketches.
        example_seconds: how long an exact score took.
        sketched: (m,) the sketched totals of the kept examples, see `shortlist.fit`.
        totals, tokens: (m,) whether a kept example's total, its tokens' scores are exact.
        layers: for some of the kept examples, by number, each layer's part of the total (L,).
        training: for some, the influence of each learnt token.
        cells: for some (T, S), the influence of each learnt token on each explained one.
        sketch_error: root mean square of sketched minus exact totals over the shortlist.
        forward_mode: whether tokens were scored by forward-mode passes.
    """

    shortlist: int
    doubtful: int
    example_seconds: float
    sketched: Array
    totals: Array
    tokens: Array
    layers: dict[int, Array]
    training: dict[int, Array]
    cells: dict[int, Array]
    sketch_error: float
    forward_mode: bool


class _Pace:
    """How long examples take, measured as they are done."""

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._seconds = 0.0
        self._examples = 0

    @property
    def each(self) -> float:
        """Seconds of an example; 0 before any was done."""
        return self._seconds / max(1, self._examples)

    def steps(self, slots: Array, until: float) -> Iterator[Array]:
        """Cut examples into steps of a few seconds, while there is time; a single one at first.

        Of several checkpoints models are loaded anew for each step, so it is as large as can be.
        """
        while len(slots) and (not self._examples or time.monotonic() < until):
            most = len(slots) if self._several else _STEP_EXAMPLES
            if self._examples:
                left = max(0.0, until - time.monotonic())
                seconds = left if self._several else min(left, _STEP_SECONDS)
                count = min(most, seconds / max(self.each, 1e-9))
            else:
                count = most if self._several else 1
            some = slots[: max(1, int(count))]
            start = time.monotonic()
            yield some
            self._seconds += time.monotonic() - start
            self._examples += len(some)
            slots = slots[len(some) :]


class Refinement:
    """Scores examples exactly against one query; `result` says at any time what is known.

    Args:
        panel: the checkpoints that are asked.
        query, found: what is asked, and the sketched scores.
        examples: by place, what the scores count.
        options: how.
        progress: called with what is going on.
        start: when the time for this began, as `time.monotonic` tells it.
        columns: scores examples by their cached rows, (n, 1 + T).
    """

    def __init__(
        self,
        panel: Panel,
        query: Query,
        found: Ranked,
        examples: Sequence[Sequence[Example]],
        options: Options,
        progress: StageProgress,
        start: float,
        columns: Callable[[Array], Array],
    ) -> None:
        self._panel = panel
        self._query = query
        self._found = found
        self._examples = examples
        self._options = options
        self._progress = progress
        self._columns = columns
        self._budget = start + options.budget
        self._last = start + (1 + _SHOWN) * options.budget
        self._scored = Shortlist.unscored(np.empty(0, np.int64), found.scores.shape[1])
        self._tokens: dict[int, Array] = {}
        self._training: dict[int, Array] = {}
        self._cells: dict[int, Array] = {}
        self._read: dict[int, Array] = {}
        several = len(panel) > 1
        self._pace, self._token_pace = _Pace(several=several), _Pace(several=several)

    def run(self) -> None:
        """Score, and then work out the tokens of what is shown."""
        if self._options.exact is None:
            self._score_in_time()
        else:
            self._score_shortlist(self._options.exact)
        self._work_out_tokens()

    def _score_in_time(self) -> None:
        """Score the best, then all that may be among them, then the best of single tokens."""
        self._score(_strongest(self._found.totals, self._options.top))
        for likeliest in (self._doubtful, self._of_tokens):
            while time.monotonic() < self._budget and len(more := likeliest()):
                self._score(more if len(self._panel) > 1 else more[:_TURN])

    def _score_shortlist(self, exact: int) -> None:
        """Score a shortlist, and all that may be among the best, as far as its limit allows."""
        top = self._options.top * exact
        self._score(self._found.best(top, self._options.token_top * exact).slots)
        room = 2 * top * (GROWTH - 1)
        # A turn moves the bar for the next one; loading several models again costs more.
        step = 2 * top if len(self._panel) == 1 else room
        while room > 0 and len(more := self._doubtful()):
            self._score(more[: min(step, room)])
            room -= step

    def _doubtful(self) -> Array:
        scored = self._scored
        if not len(scored.slots):
            return scored.slots
        return doubtful(self._found, scored.slots, scored.scores[:, 0], self._options.top)

    def _of_tokens(self) -> Array:
        """Return what is among the best of some token by a sketched score."""
        best = self._ranked().best(self._options.top, self._options.token_top)
        return best.slots[~np.isin(best.slots, self._scored.slots)]

    def _score(self, slots: Array) -> None:
        """Score examples exactly, in this order, until time is over."""
        slots = slots[~np.isin(slots, self._scored.slots)]
        planned = len(self._scored.slots) + len(slots)
        self._progress("exact scores", len(self._scored.slots), planned)
        for some in self._pace.steps(slots, self._budget):
            made = Shortlist.unscored(some, self._scored.scores.shape[1])
            for weight, loaded in self._panel.each():
                scorer = loaded.scorer(self._panel.asked(self._query, self._options))
                found = scorer.scores(self._first(some), tokens=False)
                made.add(weight, found, scorer.forward_mode)
            self._scored = self._scored.extended(made)
            self._progress("exact scores", len(self._scored.slots), planned)

    def _work_out_tokens(self) -> None:
        """Find the token scores of what is shown, the strongest first; then of what else is kept.

        What is shown has a time of its own; the rest gets what the scores have left.
        """
        ranked = self._ranked()
        exact = np.isin(ranked.slots, self._scored.slots)
        for part, until in (
            (extremes(ranked.scores, self._options.top, 0), self._last),
            (extremes(ranked.scores, self._options.top, self._options.token_top), self._budget),
        ):
            chosen = part[exact[part]]
            order = np.argsort(-np.abs(ranked.scores[chosen, 0]), kind="stable")
            slots = ranked.slots[chosen[order]]
            slots = slots[[int(slot) not in self._training for slot in slots]]
            done = 0
            for some in self._token_pace.steps(slots, until):
                self._progress("tokens of the rows shown", done, len(slots))
                self._work_out(some)
                done += len(some)
        self._work_out_cells(ranked)

    def _work_out(self, slots: Array) -> None:
        """Find the token scores of some examples that have been scored."""
        places = np.searchsorted(self._scored.slots, slots)
        known = not self._options.tokens or not np.isnan(self._scored.scores[places]).any()
        tokens = np.zeros((len(slots), self._query.explained), np.float32)
        training: list[Array] = []
        for member, (weight, loaded) in enumerate(self._panel.each()):
            scorer = loaded.scorer(self._panel.asked(self._query, self._options))
            examples, factors = self._first(slots), self._scored.factors[member][places]
            parts = [weight * part.numpy() for part in scorer.training_tokens(examples, factors)]
            training = [a + b for a, b in zip(training, parts, strict=True)] if training else parts
            if not known:
                tokens += weight * scorer.scores(examples, tokens=True).tokens.numpy()
            self._scored.forward_mode &= scorer.forward_mode
        for number, slot in enumerate(slots.tolist()):
            self._training[slot] = training[number]
            if not known:
                self._tokens[slot] = tokens[number]

    def _work_out_cells(self, ranked: Ranked) -> None:
        """Find the token pairs of the strongest examples."""
        if not self._options.cells:
            return
        strongest = ranked.slots[extremes(ranked.scores, self._options.cells, 0)]
        slots = [slot for slot in strongest.tolist() if slot in self._training]
        for member, (weight, loaded) in enumerate(self._panel.each()):
            scorer = loaded.scorer(self._panel.asked(self._query, self._options))
            for done, slot in enumerate(slots):
                self._progress("pairs of tokens", done, len(slots))
                factors = self._scored.factors[member][np.searchsorted(self._scored.slots, slot)]
                part = weight * scorer.cells(self._examples[slot][0], factors).numpy()
                self._cells[slot] = self._cells[slot] + part if slot in self._cells else part

    def _first(self, slots: Array) -> list[Example]:
        return [self._examples[int(slot)][0] for slot in slots]

    def _ranked(self) -> Ranked:
        """All candidates: exact scores where there are any, else the sketched ones."""
        scored = self._scored
        factor = fit(self._found, scored.slots, scored.scores[:, 0])
        found = self._found.times(factor)
        new = scored.slots[~np.isin(scored.slots, found.slots)]
        slots = np.concatenate([found.slots, new])
        table = np.concatenate([found.scores, factor * self._sketched(new)])
        order = np.argsort(slots, kind="stable")
        slots, table = slots[order], table[order]
        places = np.searchsorted(slots, scored.slots)
        table[places] = np.where(np.isnan(scored.scores), table[places], scored.scores)
        for slot, tokens in self._tokens.items():
            table[np.searchsorted(slots, slot), 1:] = tokens
        totals = found.totals.copy()
        totals[scored.slots] = scored.scores[:, 0]
        return Ranked(totals, found.sizes, slots, table)

    def _sketched(self, slots: Array) -> Array:
        """The sketched scores of examples that were not among the best, where they are needed."""
        places = np.searchsorted(self._scored.slots, slots)
        unknown = slots[np.isnan(self._scored.scores[places]).any(1)]
        unread = np.array([slot for slot in unknown.tolist() if slot not in self._read], np.int64)
        if len(unread):
            self._read.update(zip(unread.tolist(), self._columns(unread), strict=True))
        nothing = np.zeros(self._scored.scores.shape[1], np.float32)
        rows = [self._read.get(slot, nothing) for slot in slots.tolist()]
        return np.array(rows, np.float32).reshape(len(slots), len(nothing))

    def result(self) -> tuple[Ranked, Exactness | None]:
        """Return the best examples by what is known now, and what is known about them."""
        scored = self._scored
        top, token_top = self._options.top, self._options.token_top
        if not len(scored.slots):
            return self._found.best(top, token_top), None
        kept = self._ranked().best(top, token_top)
        sketched = self._found.totals * fit(self._found, scored.slots, scored.scores[:, 0])
        apart = sketched[scored.slots] - scored.scores[:, 0]
        exact = np.isin(kept.slots, scored.slots)
        places = np.searchsorted(scored.slots, np.where(exact, kept.slots, scored.slots[0]))
        tokens = exact & ~np.isnan(scored.scores[places]).any(1)
        doubt = self._doubtful()
        numbers = {int(slot): number for number, slot in enumerate(kept.slots)}
        return kept, Exactness(
            len(scored.slots),
            len(doubt),
            self._pace.each,
            sketched[kept.slots],
            exact,
            tokens | np.isin(kept.slots, list(self._tokens)),
            {n: scored.layers[places[n]] for n in np.flatnonzero(exact).tolist()},
            {numbers[slot]: part for slot, part in self._training.items() if slot in numbers},
            {numbers[slot]: part for slot, part in self._cells.items() if slot in numbers},
            float(np.sqrt(np.mean(apart**2))),
            scored.forward_mode,
        )


def _strongest(totals: Array, count: int) -> Array:
    """Return the places of the highest and lowest totals, in turn, the strongest first."""
    order = np.argsort(-totals, kind="stable")
    order = order[~np.isnan(totals[order])]
    pairs = np.stack([order[:count], order[::-1][:count]], 1).ravel()
    return pairs[np.sort(np.unique(pairs, return_index=True)[1])]
