"""From questions to the ranking that people see: scan, exact scores, words.

With several checkpoints every score is the weighted sum of theirs (TracInCP), and one model
is in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint, PreparedQuery
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.panel import Panel
from rapidin_cli.influence.queries import Query, Question
from rapidin_cli.influence.query_gradients import TokenGradients
from rapidin_cli.influence.ranking import Ranked
from rapidin_cli.influence.refinement import Exactness, Refinement
from rapidin_cli.influence.score import Array
from rapidin_cli.output.stages import StageProgress

# Queries that are asked together: their gradients and directions take no more memory.
_PREPARED_BYTES = 2**28
# More bytes of cached rows than these are read once for a query, not once for its ranking and
# again for its tokens, although a ranking is then not shown before the tokens are ready.
_READ_TWICE = 2**30
# Each token's best by sketched scores, as a multiple of those that are shown: exact scores may
# take some away.
_SPARE = 4


@dataclass(frozen=True)
class Answer:
    """What is known about one query.

    Attributes:
        query: what was asked.
        losses: of each part of the query, the last checkpoint's loss of each explained token.
        examples: for each kept example, the equal rows of the data.
        found: totals (N,) of all distinct examples in the data's order, NaN if not cached;
            positions and scores of the kept ones, exact where `exact` says so.
        exact: how exact scores were made.
        words: (N,) BM25 scores of all distinct examples.
    """

    query: Query
    losses: list[list[float]]
    examples: list[list[Example]]
    found: Ranked
    words: Array
    exact: Exactness | None = None


@dataclass
class _Pending:
    """One query being answered."""

    query: Query
    losses: list[list[float]] = field(default_factory=list)
    words: Array | None = None


class Answering:
    """Answers questions about a panel of checkpoints.

    Args:
        panel: the checkpoints to ask.
        dataset: the training data.
        lexical: of its distinct examples, if words are to be compared.
        options: how.
        progress: called with what is going on.
        ranked: called with what the sketches say of a query, before anything is scored exactly.

    Attributes:
        interrupted: whether the user has ended it.
    """

    def __init__(
        self,
        panel: Panel,
        dataset: Dataset,
        lexical: Lexical | None,
        options: Options,
        progress: StageProgress,
        ranked: Callable[[Answer], None] | None = None,
    ) -> None:
        self._panel = panel
        self._options = options
        self._progress = progress
        self._ranked = ranked
        self._digests = list(dataset.by_digest)
        self._examples = dataset.distinct
        self._lexical = lexical
        self.interrupted = False

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions, in order; an interruption leaves out what has no ranking yet."""
        answers: list[Answer] = []
        try:
            last = self._panel.at(-1)
            queries = [last.query(question, self._options) for question in questions]
            for group in self._groups(queries):
                if len(queries) > 1:
                    self._progress("queries", len(answers), len(queries))
                for answer in self._answer([_Pending(query) for query in group]):
                    answers.append(answer)
                if self.interrupted:
                    break
        except KeyboardInterrupt:
            if not answers:
                raise
            self.interrupted = True
        finally:
            self._panel.forget()
        return answers

    def _groups(self, queries: Sequence[Query]) -> Iterator[list[Query]]:
        """Cut queries into groups that fit in memory: each reads the cache once.

        A query is asked alone where reading the cache is quick, so that its gradients are
        computed once. Several checkpoints are loaded in turn for a group, and scanned query by
        query.
        """
        if self._in_stages:
            yield from ([query] for query in queries)
            return
        last = self._panel.at(-1)
        group: list[Query] = []
        room = _PREPARED_BYTES
        for query in queries:
            size = last.prepared_bytes(query, self._options)
            if group and size > room:
                yield group
                group, room = [], _PREPARED_BYTES
            group.append(query)
            room -= size
        if group:
            yield group

    def _answer(self, pending: Sequence[_Pending]) -> Iterator[Answer]:
        found = self._scan(pending, tokens=self._options.tokens and not self._in_stages)
        refine = self._options.refines
        for one, ranked in zip(pending, found, strict=True):
            if not refine or self.interrupted:
                yield self._finish(one, self._best(ranked), None)
                continue
            yield self._refined(one, ranked)

    @property
    def _in_stages(self) -> bool:
        """Whether a query is asked alone: its ranking comes first, and then its tokens."""
        if len(self._panel) > 1 or not self._options.refines:
            return False
        return self._panel.at(-1).row_bytes <= _READ_TWICE

    def _scan(
        self, pending: Sequence[_Pending], *, tokens: bool, keep: bool = False
    ) -> list[Ranked]:
        """Find each query's best by its cached rows; of several checkpoints, all are kept.

        Args:
            tokens: whether single tokens are scored.
            keep: whether their gradients are kept for exact scores.
        """
        self._progress("ranking by cached rows", 0, 0)
        top, token_top = self._kept()
        found: list[Ranked] = []
        for weight, loaded in self._panel.each():
            parts, directions = [], []
            for one in pending:
                asked = self._panel.asked(one.query, self._options)
                one.losses = asked.gradient.losses
                made = self._directions(loaded, asked, tokens=tokens, keep=keep)
                if len(self._panel) > 1:
                    ranked = loaded.everything(made, asked.score, self._digests)
                    parts.append(ranked.times(weight))
                else:
                    directions.append(made)
            if directions:
                parts = loaded.best(directions, asked.score, self._digests, top, token_top)
            found = [a.plus(b) for a, b in zip(found, parts, strict=True)] if found else parts
        return found

    def _directions(
        self, loaded: LoadedCheckpoint, asked: PreparedQuery, *, tokens: bool, keep: bool
    ) -> torch.Tensor:
        """What cached rows are multiplied by, (1 + T, W), or (1, W) without tokens."""
        whole = loaded.direction(asked)
        if not tokens:
            return whole
        made = torch.cat([whole, self._tokens(loaded, asked).directions])
        if not keep:
            asked.tokens = None
        return made

    def _tokens(self, loaded: LoadedCheckpoint, asked: PreparedQuery) -> TokenGradients:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._progress("gradients of the answer's tokens", done, asked.query.explained)

        return loaded.tokens(asked, advance)

    def _kept(self) -> tuple[int, int]:
        """How many of the overall best, and of each token's, a scan keeps."""
        more = max(1, _SPARE if self._options.exact is None else self._options.exact)
        return self._options.top * more, self._options.token_top * more

    def _refined(self, one: _Pending, found: Ranked) -> Answer:
        """Score the likeliest exactly; an interruption keeps what is known by then."""
        refinement = None
        try:
            if self._ranked is not None:
                self._ranked(self._finish(one, self._best(found), None))
            if self._options.tokens and len(self._panel) == 1:
                if found.scores.shape[1] == 1:
                    found = self._scan([one], tokens=True, keep=True)[0]
                self._tokens(self._panel.at(-1), self._panel.asked(one.query, self._options))
            refinement = Refinement(
                self._panel,
                one.query,
                found,
                self._examples,
                self._options,
                self._progress,
                time.monotonic(),
                lambda slots: self._columns(one, slots),
            )
            refinement.run()
        except KeyboardInterrupt:
            self.interrupted = True
        if refinement is None:
            return self._finish(one, self._best(found), None)
        answer = self._finish(one, *refinement.result())
        self._panel.drop(one.query)
        return answer

    def _columns(self, one: _Pending, slots: Array) -> Array:
        """Score some examples by their cached rows, (n, 1 + T)."""
        loaded = self._panel.at(-1)
        asked = self._panel.asked(one.query, self._options)
        made = self._directions(loaded, asked, tokens=True, keep=True)
        digests = [self._digests[slot] for slot in slots.tolist()]
        return loaded.everything(made, asked.score, digests).scores

    def _best(self, found: Ranked) -> Ranked:
        return found.best(self._options.top, self._options.token_top)

    def _finish(self, one: _Pending, found: Ranked, exact: Exactness | None) -> Answer:
        examples = [self._examples[int(position)] for position in found.slots]
        if one.words is None:
            one.words = np.zeros(len(self._examples), dtype=np.float32)
            if self._lexical is not None:
                one.words = self._lexical.scores(one.query.example)
        return Answer(one.query, one.losses, examples, found, one.words, exact)
