"""Queries: from the user's words to tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.files import RowError, read_values
from rapidin_cli.data.rows import DataSettings, Row
from rapidin_cli.data.shapes import guess_format, parse_row
from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.models.loading import most_tokens

Source = Literal["given", "generated", "row"]


@dataclass(frozen=True)
class Question:
    """What the user asks about, before tokenisation.

    Exactly one of: a prompt with a response, a prompt whose response is to be generated
    (`response` None), or a row of the training data.

    Attributes:
        contrast: what it should have said: the difference between the two is explained.
        focus: words of the response: only they are explained.
        span: numbers of its tokens, `12` or `12:15`: only they are explained.
    """

    id: str
    prompt: str = ""
    response: str | None = None
    row: Row | None = None
    training_row: str = ""
    contrast: str = ""
    focus: str = ""
    span: str = ""


@dataclass(frozen=True)
class Query:
    """A question as tokens.

    Attributes:
        example: the tokens that the model read and said; the labelled ones are explained.
        contrast: what it should have said, if the difference of both is asked about.
    """

    id: str
    source: Source
    example: Example
    contrast: Example | None = None

    @property
    def parts(self) -> list[tuple[Example, float]]:
        """The sequences whose losses are explained, with their signs."""
        against = [] if self.contrast is None else [(self.contrast, -1.0)]
        return [(self.example, 1.0), *against]

    @property
    def explained(self) -> int:
        """Number of explained tokens, those of the contrast included."""
        return sum(part.learnt for part, _ in self.parts)


def generate(
    engine: GradientEngine, encoder: Encoder, tokenizer: Any, prompt: str, max_new_tokens: int
) -> Example:
    """Let the model answer greedily; EOS is explained only if the model said it."""
    ids = encoder.prompt_ids(prompt) if prompt.strip() else []
    if not ids:
        raise InputError("the prompt is empty", hint="rin retrieve --prompt TEXT --generate")
    most = most_tokens(engine.passes.model)
    if len(ids) >= most:
        raise InputError(
            f"the prompt has {len(ids):,} tokens, but the model takes {most:,}",
            hint="use a shorter prompt",
        )
    device = next(engine.passes.model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    with torch.no_grad():
        output = engine.passes.model.generate(  # type: ignore[operator]
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(max_new_tokens, most - len(ids)),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            repetition_penalty=1.0,
            eos_token_id=_stop_tokens(engine, tokenizer),
        )
    whole = output[0].tolist()
    labels = [IGNORED] * len(ids) + whole[len(ids) :]
    response = tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
    row = Row("", 0, "query", prompt, response)
    example = Example(row, np.array(whole, dtype=np.int32), np.array(labels, dtype=np.int32))
    if not example.learnt:
        raise InputError("the model generated nothing", hint="give --response text")
    return example


def _stop_tokens(engine: GradientEngine, tokenizer: Any) -> list[int] | None:
    """The tokenizer's EOS and those that the model's own generation settings name."""
    named = getattr(engine.passes.model.generation_config, "eos_token_id", None)
    stops = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    return sorted(stops) or None


def read_questions(path: Path, settings: DataSettings, *, generate: bool) -> list[Question]:
    """Read queries from a file in any of the data's shapes.

    With `generate`, rows need no response: the model answers the prompt.

    Raises:
        InputError: a row cannot be a query (the first, with its line), or there is no row.
    """
    questions = []
    name = "stdin" if str(path) == "/dev/stdin" else str(path)
    try:
        values = list(read_values(path, name))
    except InputError as error:  # its hint is about training data
        raise InputError(error.message, hint="give --queries a JSONL file of UTF-8 text") from None
    for line, value in values:
        questions.append(read_question(value, settings, name, line, generate=generate))
    if not questions:
        raise InputError(f"{name} has no queries", hint='one per line: {"prompt": "...", ...}')
    repeated = {q.id for q in questions if [p.id for p in questions].count(q.id) > 1}
    if repeated:
        raise InputError(
            f"{name}: two queries have the id {sorted(repeated)[0]!r}", hint=f"fix {name}"
        )
    return questions


def read_question(
    value: Any, settings: DataSettings, name: str, line: int, *, generate: bool
) -> Question:
    """Read one query; see `read_questions`.

    Args:
        value: of a line, or why it is none.

    Raises:
        InputError: it cannot be a query.
    """
    try:
        if isinstance(value, RowError):
            raise value
        return _question(value, settings, name, line, generate=generate)
    except RowError as error:
        raise InputError(f"{name}:{line}: {error}", hint=f"fix {name}") from None


def _question(
    value: Any, settings: DataSettings, name: str, line: int, *, generate: bool
) -> Question:
    named = isinstance(value, dict) and value.get(settings.id_field) not in (None, "")
    identity = str(value[settings.id_field]) if named else f"q{line}"
    contrast, focus = _text(value, "contrast"), _text(value, "focus")
    if contrast and focus:
        raise RowError("contrast and focus cannot be combined")
    if generate:
        prompt = value.get(settings.prompt_field) if isinstance(value, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise RowError(f"field {settings.prompt_field!r} must be text")
        return Question(identity, prompt=prompt, contrast=contrast, focus=focus)
    shape = guess_format(value, settings)
    if shape is None:
        raise RowError(f"expected {settings.prompt_field} and {settings.response_field}")
    row = parse_row(value, shape, settings, name, line)
    return Question(identity, row=row, contrast=contrast, focus=focus)


def _text(value: Any, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    if found is not None and not isinstance(found, str):
        raise RowError(f"field {key!r} must be text")
    return found or ""


def narrowed(question: Question, example: Example, texts: Sequence[str]) -> Example:
    """Return the example with only the asked span of it explained.

    Args:
        texts: of each token.

    Raises:
        InputError: the response has no such words or tokens.
    """
    places = np.flatnonzero(example.learnt_mask)
    if question.span:
        first, last = _numbers(question, len(places))
        chosen = places[first : last + 1]
    elif question.focus:
        parts = [texts[int(place)] for place in places]
        said = "".join(parts)
        chosen = places[_overlapping(said, parts, question.focus)]
        if not len(chosen):
            raise InputError(
                f"query {question.id!r}: the response does not say {question.focus!r}",
                hint=f"--focus takes words from it: {said[:80]!r}",
            )
    else:
        return example
    labels = np.full_like(example.labels, IGNORED)
    labels[chosen] = example.labels[chosen]
    return example.with_tokens(example.input_ids, labels)


def _numbers(question: Question, count: int) -> tuple[int, int]:
    first, _, last = question.span.partition(":")
    try:
        span = int(first), int(last or first)
    except ValueError:
        span = -1, -1
    if not 0 <= span[0] <= span[1] < count:
        raise UsageError(
            f"query {question.id!r}: --token {question.span} is not a span of its tokens, 0 to "
            f"{count - 1}",
            hint="give one token, such as 12, or the first and the last, such as 12:15",
        )
    return span


def _overlapping(text: str, tokens: Sequence[str], words: str) -> list[int]:
    """Return the numbers of the tokens that take part in an occurrence of `words`."""
    ends = np.cumsum([len(token) for token in tokens])
    starts = ends - [len(token) for token in tokens]
    found: set[int] = set()
    at = text.find(words)
    while at >= 0:
        found.update(np.flatnonzero((starts < at + len(words)) & (ends > at)).tolist())
        at = text.find(words, at + 1)
    return sorted(found)
