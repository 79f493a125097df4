"""`rin retrieve`: from questions to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.reading import RowError
from rapidin_cli.errors import InputError, MissingError
from rapidin_cli.gradients.directions import Direction
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.rows import RowLayout, row_kind
from rapidin_cli.influence.exact import ExactScorer
from rapidin_cli.influence.preconditioners import Ekfac, Gram, Preconditioner
from rapidin_cli.influence.queries import (
    Query,
    QueryGradient,
    Question,
    generate,
    narrowed,
    query_gradient,
    token_directions,
)
from rapidin_cli.influence.refine import Refined, refine
from rapidin_cli.influence.score import Score, choose_score, scan
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.report import view
from rapidin_storage import Snapshot

if TYPE_CHECKING:
    from rapidin_cli.curvature import Collection

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        score: a key of `SCORES`.
        exact: how many times as many as are kept are scored exactly; 0: sketches decide.
        top: kept overall, of each sign.
        token_top: kept for each explained token, of each sign.
        damping: of an inverse curvature, as a share of its mean eigenvalue in each layer.
        tokens: whether to score each explained token.
        max_new_tokens: length limit of a generation.
        batch_tokens: padded tokens of a batch of token gradients.
    """

    score: str = "rapidin"
    exact: int = 4
    top: int = 10
    token_top: int = 5
    damping: float = 0.1
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
        curvature: Callable[[], Collection],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._dataset = dataset
        self.snapshot = snapshot
        self._curvature = curvature
        self._inverses: dict[tuple[str, float], Preconditioner] = {}
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
            made = self._query(question, options)
            texts = token_texts(self._tokenizer, made.example.input_ids.tolist())
            example = narrowed(question, made.example, texts)
            return replace(made, example=example, contrast=self._contrast(question, made))
        except RowError as error:
            raise InputError(
                f"query {question.id!r}: {error}", hint="correct it, or [data] template in rin.toml"
            ) from None

    def _contrast(self, question: Question, made: Query) -> Example | None:
        if not question.contrast:
            return None
        if question.row is None and not question.training_row:
            return self._encoder.query(question.prompt, question.contrast)
        row = question.row or made.example.row
        return self._encoder.query_of_row(replace(row, response=question.contrast))

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

    def answer(
        self, query: Query, options: Options, progress: Callable[[int, int], None] = lambda *_: None
    ) -> dict[str, Any]:
        """Score every cached example of the data against one query: a query of the report.

        Args:
            progress: is told (done, all) of the examples that are scored exactly.
        """
        score = choose_score(options.score, self.layout)
        preconditioner = self._preconditioner(score, options.damping)
        passes = self._engine.passes.exactly() if options.exact else self._engine.passes
        gradient = query_gradient(passes, query)
        wanted = np.zeros(self.snapshot.commit.slots, dtype=bool)
        wanted[list(self._slots.values())] = True
        more = max(1, options.exact)
        found = scan(
            self.snapshot,
            self._kind,
            self._directions(query, gradient, score, preconditioner, options),
            score,
            wanted,
            options.top * more,
            options.token_top * more,
        )
        refined = Refined(found)
        if options.exact:
            scorer = ExactScorer(
                passes, score, preconditioner, query, gradient, options.batch_tokens
            )
            refined = refine(scorer, found, self._examples(found.slots), options, progress)
        texts = [token_texts(self._tokenizer, part.input_ids.tolist()) for part, _ in query.parts]
        shown = self._examples(refined.found.slots)
        learnt = [self._learnt_texts(rows[0]) for rows in shown]
        return view.query_view(
            query, texts, gradient, refined, shown, learnt, token_scores=options.tokens
        )

    def _examples(self, slots: Any) -> list[list[Example]]:
        return [self._dataset.by_digest[self._digest_at[int(slot)]] for slot in slots]

    def _learnt_texts(self, example: Example) -> list[str]:
        texts = token_texts(self._tokenizer, example.input_ids.tolist())
        return [text for text, known in zip(texts, example.learnt_mask, strict=True) if known]

    def totals(self, example: Example, score_name: str) -> dict[bytes, float]:
        """Return the sketched score of every cached row for one query, by the row's digest."""
        score = choose_score(score_name, self.layout)
        query = Query("", "given", example)
        gradient = query_gradient(self._engine.passes, query)
        wanted = np.asarray(self.snapshot.digests.any(axis=1))
        options = Options(score_name, tokens=False)
        directions = self._directions(
            query, gradient, score, self._preconditioner(score, options.damping), options
        )
        found = scan(self.snapshot, self._kind, directions, score, wanted, 1, 0)
        return {digest: float(found.totals[s]) for digest, s in self.snapshot.index.items()}

    def _preconditioner(self, score: Score, damping: float) -> Preconditioner | None:
        """Return the inverse curvature that a score needs, made once."""
        if score.curvature == "":
            return None
        key = score.curvature, damping
        if key not in self._inverses:
            device = self._engine.passes.device
            if score.curvature == "ekfac":
                self._inverses[key] = Ekfac(self._curvature().layers, damping, device)
            else:
                self._inverses[key] = Gram(
                    self.snapshot, self.layout, self._engine.sketches, damping, device
                )
        return self._inverses[key]

    def _directions(
        self,
        query: Query,
        gradient: QueryGradient,
        score: Score,
        preconditioner: Preconditioner | None,
        options: Options,
    ) -> torch.Tensor:
        """Return what rows are multiplied by: (1 + T, W), or (1, W) without tokens."""
        divisors = score.divisors(gradient.norm)
        in_weights = preconditioner if preconditioner and not preconditioner.on_rows else None
        layers: Sequence[Direction] = gradient.layers
        if in_weights:
            layers = [in_weights.direction(n, layer) for n, layer in enumerate(gradient.layers)]
        rows = self._engine.probe(layers, divisors)[None]
        if options.tokens:
            change = in_weights.change if in_weights else None
            tokens = token_directions(self._engine, query, divisors, change, options.batch_tokens)
            rows = torch.cat([rows, tokens])
        if preconditioner and preconditioner.on_rows:
            rows = preconditioner.apply_to_rows(rows)
        return rows


def answer_all(
    retriever: Retriever,
    questions: Sequence[Question],
    options: Options,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Answer questions in order."""
    answers = []
    for number, question in enumerate(questions):
        progress("queries", number, len(questions))
        answers.append(
            retriever.answer(
                retriever.query(question, options),
                options,
                lambda done, total: progress("exact scores", done, total),
            )
        )
    progress("queries", len(questions), len(questions))
    return answers
