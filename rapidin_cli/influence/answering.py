"""From questions to the ranking that people see: scan, shortlist, exact scores, words.

With several checkpoints every score is the weighted sum of theirs (TracInCP), and one model
is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint, PreparedQuery
from rapidin_cli.influence.options import Options, StageProgress
from rapidin_cli.influence.queries import Query, Question
from rapidin_cli.influence.ranking import Ranked, extremes
from rapidin_cli.influence.score import Array
from rapidin_cli.influence.shortlist import GROWTH, Shortlist, doubtful, fitted

_DIRECTION_BYTES = 2**28


@dataclass(frozen=True)
class Answer:
    """What is known about one query.

    Attributes:
        query: what was asked.
        losses: of each part of the query, the last checkpoint's loss of each explained token.
        examples: for each kept example, the equal rows of the data.
        found: totals (N,) of all distinct examples in the data's order, NaN if not cached;
            positions and scores of the kept, exact if `exact` is not None.
        exact: how exact scores were made.
        words: (N,) BM25 scores of all distinct examples.
    """

    query: Query
    losses: list[list[float]]
    examples: list[list[Example]]
    found: Ranked
    words: Array
    exact: Exactness | None = None


@dataclass(frozen=True)
class Exactness:
    """What exact scoring found.

    Attributes:
        shortlist: how many examples were scored exactly.
        doubtful: how many others may belong to the best, by the measured error of sketches.
        sketched: (m,) the sketched totals of the kept examples, see `fitted`.
        layers: (m, L) each layer's part of the totals of the kept examples.
        training: for each kept example, the influence of each learnt token.
        cells: for some of the kept examples, by number: (T, S), the influence of each learnt
            token on each explained one.
        sketch_error: root mean square of these minus exact totals over the shortlist.
        forward_mode: whether tokens were scored by forward-mode passes.
    """

    shortlist: int
    doubtful: int
    sketched: Array
    layers: Array
    training: list[Array]
    cells: dict[int, Array]
    sketch_error: float
    forward_mode: bool


class Panel:
    """The checkpoints that are asked, with their weights; the last one loaded is kept.

    Args:
        openers: load a checkpoint, in the order of training; all read the same data.
        weights: factors of their scores.
    """

    def __init__(
        self, openers: Sequence[Callable[[], LoadedCheckpoint]], weights: Sequence[float]
    ) -> None:
        self._openers = openers
        self.weights = weights
        self._at: tuple[int, LoadedCheckpoint] | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, number: int) -> LoadedCheckpoint:
        """Return a loaded checkpoint, loading it unless it is the current one."""
        number %= len(self)
        if self._at is None or self._at[0] != number:
            self._at = None  # one model at a time
            self._at = number, self._openers[number]()
        return self._at[1]

    def each(self) -> Iterator[tuple[float, LoadedCheckpoint]]:
        """Yield (weight, loaded), the last checkpoint last."""
        for number, weight in enumerate(self.weights):
            yield weight, self.at(number)


@dataclass
class _Pending:
    """One query being answered."""

    query: Query
    losses: list[list[float]] = field(default_factory=list)


class Answering:
    """Answers questions about a panel of checkpoints.

    Args:
        panel: the checkpoints to ask.
        dataset: the training data.
        lexical: of its distinct examples, if words are to be compared.
        options: how.
        progress: called with what is going on.
    """

    def __init__(
        self,
        panel: Panel,
        dataset: Dataset,
        lexical: Lexical | None,
        options: Options,
        progress: StageProgress,
    ) -> None:
        self._panel = panel
        self._options = options
        self._progress = progress
        self._digests = list(dataset.by_digest)
        self._examples = dataset.distinct
        self._lexical = lexical

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions, in order."""
        last = self._panel.at(-1)
        queries = [last.query(question, self._options) for question in questions]
        answers: list[Answer] = []
        for group in self._groups(queries):
            self._progress("queries", len(answers), len(queries))
            answers += self._answer([_Pending(query) for query in group])
        self._progress("queries", len(queries), len(queries))
        return answers

    def _groups(self, queries: Sequence[Query]) -> Iterator[list[Query]]:
        """Cut queries into groups whose directions fit in memory: each reads the cache once.

        Several checkpoints are loaded in turn for every group, and scanned query by query.
        """
        if len(self._panel) > 1:
            yield list(queries)
            return
        last = self._panel.at(-1)
        group: list[Query] = []
        room = _DIRECTION_BYTES
        for query in queries:
            size = last.direction_bytes(query, self._options)
            if group and size > room:
                yield group
                group, room = [], _DIRECTION_BYTES
            group.append(query)
            room -= size
        if group:
            yield group

    def _answer(self, pending: Sequence[_Pending]) -> list[Answer]:
        found = self._scan(pending)
        if not self._options.exact:
            return [self._finish(*pair, None) for pair in zip(pending, found, strict=True)]
        return self._refine(pending, found)

    def _scan(self, pending: Sequence[_Pending]) -> list[Ranked]:
        """Find each query's shortlist by its cached rows."""
        more = max(1, self._options.exact)
        top, token_top = self._options.top * more, self._options.token_top * more
        found: list[Ranked] = []
        for weight, loaded in self._panel.each():
            directions, parts = [], []
            for one in pending:
                asked = loaded.ask(one.query, self._options)
                one.losses = asked.gradient.losses
                if len(self._panel) > 1:
                    parts.append(loaded.everything(asked, self._digests).times(weight))
                elif asked.directions is not None:
                    directions.append(asked.directions)
            if directions:
                parts = loaded.best(directions, asked.score, self._digests, top, token_top)
            found = [a.plus(b) for a, b in zip(found, parts, strict=True)] if found else parts
        return [part.best(top, token_top) for part in found]

    def _refine(self, pending: Sequence[_Pending], found: Sequence[Ranked]) -> list[Answer]:
        """Score shortlists exactly, and keep their best."""
        lists, left = self._shortlists(pending, found)
        found = [
            fitted(part, scored.slots, scored.scores[:, 0])
            for part, scored in zip(found, lists, strict=True)
        ]
        best = [extremes(s.scores, self._options.top, self._options.token_top) for s in lists]
        kept = [
            part.replaced(scored.slots, scored.scores).only(chosen)
            for part, scored, chosen in zip(found, lists, best, strict=True)
        ]
        own = [[part[n] for part in s.factors] for s, n in zip(lists, best, strict=True)]
        training = self._training_tokens(pending, kept, own)
        cells = self._cells(pending, kept, own)
        answers = []
        for number, (one, scored, exact) in enumerate(zip(pending, lists, kept, strict=True)):
            sketched = found[number].totals
            apart = sketched[scored.slots] - scored.scores[:, 0]
            exactness = Exactness(
                len(scored.slots),
                left[number],
                sketched[exact.slots],
                scored.layers[best[number]],
                training[number],
                cells[number],
                float(np.sqrt(np.mean(apart**2))) if len(apart) else 0.0,
                scored.forward_mode,
            )
            answers.append(self._finish(one, exact, exactness))
        return answers

    def _shortlists(
        self, pending: Sequence[_Pending], found: Sequence[Ranked]
    ) -> tuple[list[Shortlist], list[int]]:
        """Score exactly all that may be among the best, as far as the limit allows.

        Also returns how many are left.
        """
        top = self._options.top
        first = 2 * top * self._options.exact
        room = first * (GROWTH - 1)
        # A turn moves the bar for the next one; loading several models again costs more.
        step = first if len(self._panel) == 1 else room
        lists = self._exact_scores(pending, [part.slots for part in found])
        while True:
            others = [
                doubtful(part, scored.slots, scored.scores[:, 0], top)
                for part, scored in zip(found, lists, strict=True)
            ]
            more = [np.sort(slots[: min(step, room)]) for slots in others]
            if not any(map(len, more)):
                return lists, [len(slots) for slots in others]
            room -= step
            extra = self._exact_scores(pending, more)
            lists = [scored.extended(new) for scored, new in zip(lists, extra, strict=True)]

    def _exact_scores(self, pending: Sequence[_Pending], slots: Sequence[Array]) -> list[Shortlist]:
        """Score some examples exactly, for each query its own."""
        width = [1 + one.query.explained * self._options.tokens for one in pending]
        made = [Shortlist.unscored(*shape) for shape in zip(slots, width, strict=True)]
        for weight, loaded in self._panel.each():
            for one, scored in zip(pending, made, strict=True):
                if not len(scored.slots):
                    continue
                first = self._first(scored.slots)
                scorer = loaded.scorer(self._ask(loaded, one))
                exact = scorer.scores(
                    first, tokens=self._options.tokens, progress=self._counter(len(first))
                )
                scored.add(weight, exact, scorer.forward_mode)
        return made

    def _training_tokens(
        self,
        pending: Sequence[_Pending],
        kept: Sequence[Ranked],
        factors: Sequence[Sequence[torch.Tensor]],
    ) -> list[list[Array]]:
        """Return, for each query and kept example, the influence of each learnt token."""
        sums: list[list[Array]] = [[] for _ in pending]
        for member, (weight, loaded) in enumerate(self._panel.each()):
            for number, one in enumerate(pending):
                scorer = loaded.scorer(self._ask(loaded, one))
                parts = scorer.training_tokens(
                    self._first(kept[number].slots), factors[number][member]
                )
                weighted = [weight * part.numpy() for part in parts]
                if sums[number]:
                    weighted = [a + b for a, b in zip(sums[number], weighted, strict=True)]
                sums[number] = weighted
        return sums

    def _cells(
        self,
        pending: Sequence[_Pending],
        kept: Sequence[Ranked],
        factors: Sequence[Sequence[torch.Tensor]],
    ) -> list[dict[int, Array]]:
        """Return, for each query, the token pairs of its strongest examples."""
        sums: list[dict[int, Array]] = [{} for _ in pending]
        if not self._options.cells:
            return sums
        for member, (weight, loaded) in enumerate(self._panel.each()):
            for one, found, own, pairs in zip(pending, kept, factors, sums, strict=True):
                scorer = loaded.scorer(self._ask(loaded, one))
                for number in extremes(found.scores[:, :1], self._options.cells, 0).tolist():
                    example = self._examples[int(found.slots[number])][0]
                    part = weight * scorer.cells(example, own[member][number]).numpy()
                    pairs[number] = pairs[number] + part if number in pairs else part
        return sums

    def _first(self, positions: Array) -> list[Example]:
        return [self._examples[int(position)][0] for position in positions]

    def _ask(self, loaded: LoadedCheckpoint, one: _Pending) -> PreparedQuery:
        return loaded.ask(one.query, self._options, scan=False)

    def _counter(self, total: int) -> Callable[[int], None]:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._progress("exact scores", done, total)

        return advance

    def _finish(self, one: _Pending, found: Ranked, exact: Exactness | None) -> Answer:
        examples = [self._examples[int(position)] for position in found.slots]
        words = np.zeros(len(self._examples), dtype=np.float32)
        if self._lexical is not None:
            words = self._lexical.scores(one.query.example)
        return Answer(one.query, one.losses, examples, found, words, exact)
