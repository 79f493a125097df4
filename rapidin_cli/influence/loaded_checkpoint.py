"""One checkpoint, loaded: its model, its cache, and what both say about a query."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Dataset, Example
from rapidin_cli.data.files import RowError
from rapidin_cli.errors import InputError, MissingError
from rapidin_cli.gradients import memory
from rapidin_cli.gradients.directions import Direction
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.memory import BatchBytes
from rapidin_cli.gradients.passes import Passes
from rapidin_cli.gradients.rows.kinds import row_kind
from rapidin_cli.gradients.stored_curvature import CollectedCurvature
from rapidin_cli.influence.exact import ExactScorer
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.preconditioners import Adam, Ekfac, Gram, Preconditioner
from rapidin_cli.influence.queries import Query, Question, generate, narrowed
from rapidin_cli.influence.query_gradients import (
    QueryGradient,
    TokenGradients,
    gradient_bytes,
    query_gradient,
    token_gradients,
    token_matrices_bytes,
)
from rapidin_cli.influence.ranking import Ranked
from rapidin_cli.influence.scan import CachedRows, Scan, chunk_scores, scan
from rapidin_cli.influence.score import Array, Score, choose_score
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.models.loading import most_tokens
from rapidin_storage import Snapshot

# Gradients of a query's tokens are kept if they leave this share of the room to batches.
_FOR_BATCHES = 0.4


@dataclass
class PreparedQuery:
    """A query prepared for one checkpoint.

    Attributes:
        query: what is asked.
        score, inverse: how gradients are compared, and P.
        gradient: the query's.
        passes: the model as the scores need it.
        batch_tokens: padded tokens of a batch, at most.
        tokens: the gradients of its tokens, once they have been computed.
        scorer: what scores examples exactly, once it has been made.
    """

    query: Query
    score: Score
    inverse: Preconditioner | None
    gradient: QueryGradient
    passes: Passes
    batch_tokens: int
    tokens: TokenGradients | None = None
    scorer: ExactScorer | None = None

    @property
    def divisors(self) -> torch.Tensor:
        """(L,) what the query's layers are divided by."""
        return self.score.divisors(self.gradient.norm)


class LoadedCheckpoint:
    """Answers questions about one checkpoint; loads the model once.

    Args:
        hold: where cached rows are kept, see `CachedRows`.
        scan: what scans them: `scan.scan` here, or `ray_scan.scan` on a cluster.

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
        curvature: Callable[[], CollectedCurvature],
        second_moments: Callable[[], list[torch.Tensor]],
        hold: str = "disk",
        scan: Scan = scan,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._dataset = dataset
        self.snapshot = snapshot
        self._curvature = curvature
        self._second_moments = second_moments
        self._inverses: dict[tuple[str, float], Preconditioner] = {}
        self._takes: dict[str, BatchBytes] = {}
        self._rows = CachedRows(snapshot, row_kind(engine.layout), hold, engine.passes.device)
        self._scan = scan
        stored = snapshot.attributes.get("rin", {}).get("layout")
        if stored != engine.layout.to_json():
            raise MissingError(
                f"{snapshot} was cached for other layers than the model has", hint="rin cache"
            )

    @property
    def layout(self) -> RowLayout:
        """Layers and blocks of the cached rows."""
        return self._engine.layout

    @property
    def left_out(self) -> tuple[float, str]:
        """Share of the trained numbers that cannot be captured, and the main reason."""
        return self._engine.passes.left_out

    @property
    def missing(self) -> int:
        """Examples of the data that have no cached row."""
        index = self.snapshot.index
        return sum(digest not in index for digest in self._dataset.by_digest)

    def query(self, question: Question, options: Options) -> Query:
        """Turn a question into tokens.

        Raises:
            InputError: nothing to explain, an unknown training row, or a conversation that
                the template refuses.
        """
        try:
            made = self._query(question, options)
            contrast = self._contrast(question, made)
            self._check(made.example, contrast, question)
            example = narrowed(question, made.example, self.texts(made.example))
            return replace(made, example=example, contrast=contrast)
        except RowError as error:
            raise InputError(
                f"query {question.id!r}: {error}", hint="correct it, or [data] template in rin.toml"
            ) from None

    def _check(self, example: Example, contrast: Example | None, question: Question) -> None:
        most = most_tokens(self._engine.passes.model)
        longest = max(len(part.input_ids) for part in (example, contrast) if part is not None)
        if longest > most:
            raise InputError(
                f"query {question.id!r} has {longest:,} tokens, but the model takes {most:,}",
                hint="ask about a shorter prompt and response",
            )
        if contrast is not None and np.array_equal(contrast.input_ids, example.input_ids):
            raise InputError(
                f"query {question.id!r}: the contrast equals the response, so there is no "
                "difference to explain",
                hint="rin retrieve --contrast TEXT, with what it should have said instead",
            )

    def _contrast(self, question: Question, made: Query) -> Example | None:
        if not question.contrast:
            return None
        if question.row is None and not question.training_row:
            return self._encoder.query(question.prompt, question.contrast)
        row = question.row or made.example.row
        return self._encoder.query_of_row(row, question.contrast)

    def _query(self, question: Question, options: Options) -> Query:
        if question.training_row:
            example = self._dataset.find(question.training_row)
            if example is None:
                raise InputError(
                    f"no training row has the id {question.training_row!r}",
                    hint="use an id from the data, or FILE:LINE; rin show ID shows a row",
                )
            return Query(question.id, "row", example)
        if question.row is not None:
            return Query(question.id, "given", self._encoder.query_of_row(question.row))
        if question.response is not None:
            if not question.response.strip():
                raise InputError(
                    f"query {question.id!r}: the response has no token to explain",
                    hint="rin retrieve --prompt TEXT --response TEXT",
                )
            example = self._encoder.query(question.prompt, question.response)
            return Query(question.id, "given", example)
        made = generate(
            self._engine, self._encoder, self._tokenizer, question.prompt, options.max_new_tokens
        )
        return Query(question.id, "generated", made)

    def ask(self, query: Query, options: Options) -> PreparedQuery:
        """Prepare a query for this checkpoint: compute its gradient."""
        score = choose_score(options.score, self.layout, options.damping)
        inverse = self._preconditioner(score, options.damping or score.damping)
        passes = self._engine.passes.exactly() if options.refines else self._engine.passes
        gradient = query_gradient(passes, query)
        return PreparedQuery(query, score, inverse, gradient, passes, options.batch_tokens)

    def direction(self, asked: PreparedQuery) -> torch.Tensor:
        """Return what cached rows are multiplied by for the whole query, (1, W)."""
        inverse, gradient = asked.inverse, asked.gradient
        layers: Iterable[Direction] = gradient.layers
        if inverse and not inverse.on_rows:  # one after the other: curvature may be large
            layers = (inverse.direction(n, layer) for n, layer in enumerate(gradient.layers))
        rows = self._engine.probe(layers, asked.divisors)[None]
        return inverse.apply_to_rows(rows) if inverse and inverse.on_rows else rows

    def tokens(
        self, asked: PreparedQuery, progress: Callable[[int], None] = lambda _: None
    ) -> TokenGradients:
        """Return the gradients of the query's tokens, computed once."""
        if asked.tokens is None:
            needed = token_matrices_bytes(asked.passes, asked.query.explained)
            asked.tokens = token_gradients(
                self._engine,
                asked.passes,
                asked.query,
                asked.divisors,
                asked.inverse,
                keep=needed <= (1 - _FOR_BATCHES) * memory.room_left(asked.passes),
                progress=progress,
            )
        return asked.tokens

    def best(
        self,
        directions: Sequence[torch.Tensor],
        score: Score,
        digests: Sequence[bytes],
        top: int,
        token_top: int,
    ) -> list[Ranked]:
        """Scan the cached rows of some examples once, for all queries.

        Each query's best overall and for each token are kept.

        Args:
            directions: of each query, (1 + T, W): `direction`, and those of its tokens.
            digests: of the examples; the slots of the results count these.
        """
        slots, places = self._places(digests)
        wanted, place_of = self._wanted(slots, places)
        made = []
        for found in self._scan(self._rows, directions, score, wanted, top, token_top):
            whole = Ranked.nothing(len(digests), found.scores.shape[1])
            whole.totals[places], whole.sizes[places] = found.totals[slots], found.sizes[slots]
            order = np.argsort(place_of[found.slots], kind="stable")
            slots_of = place_of[found.slots][order]
            made.append(replace(whole, slots=slots_of, scores=found.scores[order]))
        return made

    def prepared_bytes(self, query: Query, options: Options) -> int:
        """Return the memory of a prepared query: of its gradient, and of all its directions."""
        whole = sum(gradient_bytes(self._engine.passes, part) for part, _ in query.parts)
        width = self._engine.direction_width
        return whole + 4 * width * (1 + (query.explained if options.tokens else 0))

    def everything(
        self, directions: torch.Tensor, score: Score, digests: Sequence[bytes]
    ) -> Ranked:
        """Do the same as `best` for one query, but keep all that have a row."""
        slots, places = self._places(digests)
        wanted, place_of = self._wanted(slots, places)
        made = Ranked.nothing(len(digests), len(directions))
        table = np.empty((len(digests), len(directions)), dtype=np.float32)
        for at, scores, sizes in chunk_scores(self._rows, directions, score, wanted):
            chosen = place_of[at]
            table[chosen] = scores
            made.totals[chosen], made.sizes[chosen] = scores[:, 0], sizes
        kept = np.sort(places)
        return replace(made, slots=kept, scores=table[kept])

    def _wanted(self, slots: Array, places: Array) -> tuple[Array, Array]:
        """Return, by slot, whether it is one of these, and its place."""
        place_of = np.full(self.snapshot.commit.slots, -1)
        place_of[slots] = places
        return place_of >= 0, place_of

    def _places(self, digests: Sequence[bytes]) -> tuple[Array, Array]:
        """Return the slots of the examples that have a row, and their places in the list."""
        index = self.snapshot.index
        pairs = [(index[d], place) for place, d in enumerate(digests) if d in index]
        slots, places = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return slots, places

    def scorer(self, asked: PreparedQuery, *, alone: bool = True) -> ExactScorer:
        """Return what scores examples exactly against a query.

        Args:
            alone: one example at a time on a CPU, see `ExactScorer`.
        """
        if asked.scorer is None:
            takes = self.batch_bytes(asked.passes)
            limit = max(1, memory.tokens_in(memory.room_left(asked.passes), takes))
            asked.passes.keeps = limit
            asked.scorer = ExactScorer(
                asked.passes,
                asked.score,
                asked.inverse,
                asked.query,
                asked.gradient,
                min(limit, asked.batch_tokens),
                takes,
                None if asked.tokens is None else asked.tokens.matrices,
                alone and asked.passes.device.type == "cpu",
            )
        return asked.scorer

    def batch_bytes(self, passes: Passes) -> BatchBytes:
        """Return the memory of a padded token of a batch, measured once."""
        if passes.compute not in self._takes:
            self._takes[passes.compute] = memory.batch_bytes(passes)
        return self._takes[passes.compute]

    @property
    def row_bytes(self) -> int:
        """Bytes of all cached rows that a scan reads."""
        arrays = self._rows.kind.arrays()
        each = sum(arrays[name].row_bytes for name in self._rows.kind.scored)
        return each * self.snapshot.commit.slots

    def texts(self, example: Example) -> list[str]:
        """Return the text of each token."""
        return token_texts(self._tokenizer, example.input_ids.tolist())

    def learnt_texts(self, example: Example) -> list[str]:
        """Return the text of each learnt token."""
        known = zip(self.texts(example), example.learnt_mask, strict=True)
        return [text for text, learnt in known if learnt]

    def totals(self, query: Query, options: Options) -> dict[bytes, float]:
        """Return the sketched score of every cached row, by the row's digest."""
        digests = list(self.snapshot.index)
        asked = self.ask(query, replace(options, tokens=False, exact=0))
        totals = self.everything(self.direction(asked), asked.score, digests).totals
        return dict(zip(digests, totals.tolist(), strict=True))

    def _preconditioner(self, score: Score, damping: float) -> Preconditioner | None:
        """Return what a score multiplies gradients by, made once."""
        if score.curvature == "":
            return None
        key = score.curvature, damping
        if key not in self._inverses:
            device = self._engine.passes.device
            if score.curvature == "ekfac":
                self._inverses[key] = Ekfac(self._curvature().layers, damping, device)
            elif score.curvature == "adam":
                self._inverses[key] = Adam(self._second_moments(), damping, device)
            else:
                self._inverses[key] = Gram(
                    self.snapshot, self.layout, self._engine.sketches, damping, device
                )
        return self._inverses[key]
