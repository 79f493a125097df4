"""What a question would take, known beforehand: rows, bytes, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from rapidin_cli.data.examples import Dataset
from rapidin_cli.gradients.memory import room_left
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Question
from rapidin_cli.influence.query_gradients import token_matrices_bytes


@dataclass(frozen=True)
class Forecast:
    """What a question would take.

    Attributes:
        id: of the question.
        tokens: to explain.
        rows, row_bytes: that a scan reads.
        token_seconds: for the gradients of its tokens.
        example_seconds: for the exact score of a middling example.
        memory_bytes: of the process at its peak.
    """

    id: str
    tokens: int
    rows: int
    row_bytes: int
    token_seconds: float
    example_seconds: float
    memory_bytes: int


def forecast(
    loaded: LoadedCheckpoint, dataset: Dataset, question: Question, options: Options
) -> Forecast:
    """Ask for one gradient of a question, one of a token and one of a middling example."""
    query = loaded.query(question, options)
    asked = loaded.ask(query, options)
    lengths = sorted(dataset.distinct, key=lambda rows: len(rows[0].input_ids))
    middling, longest = lengths[len(lengths) // 2][0], lengths[-1][0]
    passes = asked.passes

    def ignore(*_: object) -> None:
        """Gradients are not wanted here."""

    token = example = 0.0
    if options.refines:
        example = _seconds(lambda: passes.backward(as_batch([middling]), ignore))
    if options.tokens:
        tokens = passes.each_token(as_batch([query.example]), ignore)
        next(tokens)  # it also runs forward
        token = query.explained * _seconds(lambda: next(tokens, 0.0))
    needed = token_matrices_bytes(passes, query.explained) if options.tokens else 0
    if options.refines:
        needed += loaded.batch_bytes(passes).of(len(longest.input_ids))
    room = room_left(passes)
    taken = psutil.Process().memory_info().rss if passes.device.type == "cpu" else 0
    return Forecast(
        question.id,
        query.explained,
        loaded.snapshot.commit.rows,
        loaded.row_bytes,
        token,
        example,
        taken + min(needed, room),
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start
