"""A session: checkpoints that are loaded once and asked any number of times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rapidin_cli.data.examples import Dataset
from rapidin_cli.influence.answering import Answer, Answering
from rapidin_cli.influence.forecast import Forecast, forecast
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.panel import Panel
from rapidin_cli.influence.queries import Question
from rapidin_cli.influence.score import AUTO
from rapidin_cli.output.stages import StageProgress
from rapidin_storage import Snapshot


@dataclass(frozen=True)
class Member:
    """A checkpoint that is asked.

    Attributes:
        name, fingerprint: of the checkpoint.
        weight: factor of its scores.
        snapshot: of its cached rows.
        load: loads its model.
        has_curvature: whether the score ekfac is available.
    """

    name: str
    fingerprint: str
    weight: float
    snapshot: Snapshot
    load: Callable[[], LoadedCheckpoint]
    has_curvature: Callable[[], bool]


@dataclass(frozen=True)
class Answered:
    """What was asked, and what was found.

    Attributes:
        answers: one for each question; for the first of them, if it was interrupted.
        options: as they were used: `auto` has been resolved.
        members: the checkpoints whose scores were added.
        weights_source: where their weights come from.
        last: the last one, loaded.
        dataset: the training data.
        words_compared: whether BM25 scores were made.
        interrupted: whether the user ended it before it was done.
    """

    answers: Sequence[Answer]
    options: Options
    members: Sequence[Member]
    weights_source: str
    last: LoadedCheckpoint
    dataset: Dataset
    words_compared: bool
    interrupted: bool = False


class Session:
    """Asks checkpoints; their scores are added, and the last model stays in memory.

    Args:
        members: in the order of training.
        weights_source: see `Answered`.
        dataset: reads the training data, the same for all of them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        weights_source: str,
        dataset: Callable[[], Dataset],
    ) -> None:
        self._members = members
        self._weights_source = weights_source
        self._read = dataset
        self._panel = Panel([m.load for m in members], [m.weight for m in members])

    @cached_property
    def _dataset(self) -> Dataset:
        return self._read()

    @cached_property
    def _lexical(self) -> Lexical | None:
        return Lexical.of(self._dataset)

    def ask(
        self,
        questions: Sequence[Question],
        options: Options,
        progress: StageProgress,
        ranked: Callable[[Answered], None] | None = None,
    ) -> Answered:
        """Answer questions.

        Args:
            ranked: called with what the sketches say of a question, before exact scores.

        Raises:
            MissingError: a checkpoint lacks the curvature for the score.
            UsageError: the rows cannot answer the score.
        """
        options = replace(options, score=self._resolve(options.score))

        first = None
        if ranked is not None:

            def first(answer: Answer) -> None:
                ranked(self._answered([answer], options))

        answering = Answering(self._panel, self._dataset, self._lexical, options, progress, first)
        answers = answering.answers(questions)
        return replace(self._answered(answers, options), interrupted=answering.interrupted)

    def forecast(self, questions: Sequence[Question], options: Options) -> list[Forecast]:
        """Return what the questions would take from the last checkpoint; loads its model."""
        options = replace(options, score=self._resolve(options.score))
        loaded = self._panel.at(-1)
        return [forecast(loaded, self._dataset, question, options) for question in questions]

    def _answered(self, answers: Sequence[Answer], options: Options) -> Answered:
        return Answered(
            answers,
            options,
            self._members,
            self._weights_source,
            self._panel.at(-1),
            self._dataset,
            self._lexical is not None,
        )

    def _resolve(self, score: str) -> str:
        """Return the score that `auto` means: the best available one, by evidence.

        `ekfac` where curvature was collected. Else `rapidin`: it finds planted rows, which `dot`
        hides, although `dot` predicts retraining better. `gram` finds them too, but reads the whole
        cache first, and only sketches have it. Never `adam`, which predicts retraining better
        still: its file is on one machine only, is often twice as large as the model, and may belong
        to an optimizer or to parameters that do not fit. The evidence is in docs/measurements.md.
        """
        if score != AUTO:
            return score
        collected = all(member.has_curvature() for member in self._members)
        return "ekfac" if collected else "rapidin"
