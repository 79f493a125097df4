"""`rin retrieve`: from questions to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.reading import RowError
from rapidin_cli.errors import InputError, MissingError
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.rows import RowLayout, row_kind
from rapidin_cli.influence.queries import (
    Query,
    QueryGradient,
    Question,
    generate,
    query_gradient,
)
from rapidin_cli.influence.score import Score, choose_score, scan
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.report import view
from rapidin_storage import Snapshot


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        score: a key of `SCORES`.
        top: kept overall, of each sign.
        token_top: kept for each explained token, of each sign.
        tokens: whether to score each explained token.
        max_new_tokens: length limit of a generation.
        batch_tokens: padded tokens of a batch of token gradients.
    """

    score: str = "rapidin"
    top: int = 10
    token_top: int = 5
    tokens: bool = True
    max_new_tokens: int = 64
    batch_tokens: int = 4096


class Retriever:
    """Answers questions about one checkpoint; loads model and cache once.

    Raises:
        MissingError: the engine and the cached rows disagree about the layers.
    """

    def __init__(
        self,
        engine: GradientEngine,
        tokenizer: Any,
        encoder: Encoder,
        dataset: Dataset,
        snapshot: Snapshot,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._dataset = dataset
        self.snapshot = snapshot
        self._kind = row_kind(engine.layout)
        stored = snapshot.attributes.get("rin", {}).get("layout")
        if stored != engine.layout.to_json():
            raise MissingError(
                f"{snapshot} has rows of other layers than the model's",
                hint="rin cache",
            )
        index = snapshot.index
        self._slots = {d: index[d] for d in dataset.by_digest if d in index}
        self._digest_at = {slot: digest for digest, slot in self._slots.items()}

    @property
    def layout(self) -> RowLayout:
        """Layers and blocks of the cached rows."""
        return self._engine.layout

    @property
    def missing(self) -> int:
        """Examples of the data that have no cached row."""
        return len(self._dataset.by_digest) - len(self._slots)

    def query(self, question: Question, options: Options) -> Query:
        """Turn a question into tokens.

        Raises:
            InputError: nothing to explain, an unknown training row, or a conversation that
                the template refuses.
        """
        try:
            return self._query(question, options)
        except RowError as error:
            raise InputError(
                f"query {question.id!r}: {error}", hint="correct it, or [data] template in rin.toml"
            ) from None

    def _query(self, question: Question, options: Options) -> Query:
        if question.training_row:
            example = self._dataset.find(question.training_row)
            if example is None:
                raise InputError(
                    f"no training row has the id {question.training_row!r}",
                    hint="rin show ID shows a row; ids are those of the data, or FILE:LINE",
                )
            return Query(question.id, "row", example)
        if question.row is not None:
            return Query(question.id, "given", self._encoder.query_of_row(question.row))
        if question.response is not None:
            example = self._encoder.query(question.prompt, question.response)
            return Query(question.id, "given", example)
        made = generate(
            self._engine, self._encoder, self._tokenizer, question.prompt, options.max_new_tokens
        )
        return Query(question.id, "generated", made)

    def answer(self, query: Query, options: Options) -> dict[str, Any]:
        """Score every cached example of the data against one query: a query of the report."""
        score = choose_score(options.score, self._engine.layout)
        gradient = query_gradient(
            self._engine, query.example, tokens=options.tokens, batch_tokens=options.batch_tokens
        )
        wanted = np.zeros(self.snapshot.commit.slots, dtype=bool)
        wanted[list(self._slots.values())] = True
        found = scan(
            self.snapshot,
            self._kind,
            self._directions(gradient, score),
            score,
            wanted,
            options.top,
            options.token_top,
        )
        examples = [self._dataset.by_digest[self._digest_at[int(s)]] for s in found.slots]
        texts = token_texts(self._tokenizer, query.example.input_ids.tolist())
        return view.query_view(query, texts, gradient, found, examples, token_scores=options.tokens)

    def totals(self, example: Example, score_name: str) -> dict[bytes, float]:
        """Return the score of every cached row for one query, by the row's digest."""
        score = choose_score(score_name, self._engine.layout)
        gradient = query_gradient(self._engine, example, tokens=False, batch_tokens=1)
        wanted = np.asarray(self.snapshot.digests.any(axis=1))
        directions = self._directions(gradient, score)
        found = scan(self.snapshot, self._kind, directions, score, wanted, 1, 0)
        return {digest: float(found.totals[s]) for digest, s in self.snapshot.index.items()}

    def _directions(self, gradient: QueryGradient, score: Score) -> torch.Tensor:
        rows = torch.cat([gradient.row[None], gradient.tokens])
        layout = self._engine.layout
        if len(layout.blocks) != len(layout.layers):
            return rows
        weights = score.query_weights(gradient.norm)
        return rows * torch.repeat_interleave(weights, torch.tensor(layout.blocks))


def answer_all(
    retriever: Retriever,
    questions: Sequence[Question],
    options: Options,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Answer questions in order, telling `progress` (done, all)."""
    answers = []
    for number, question in enumerate(questions):
        progress(number, len(questions))
        answers.append(retriever.answer(retriever.query(question, options), options))
    progress(len(questions), len(questions))
    return answers
