"""From rows and questions to tokens, exactly as the template says."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.files import RowError
from rapidin_cli.data.rendering import Rendered, Renderer
from rapidin_cli.data.rows import BadRow, DataSettings, Extras, Row
from rapidin_cli.errors import InputError

_TOKENIZE_ROWS = 256

Encoded = tuple[list[int], list[int]]


class Encoder:
    """Turns rows and queries into tokens exactly as the template says.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        settings: the `[data]` table.

    Raises:
        InputError: a slow tokenizer, or `template = "chat"` without a chat template.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                "the tokenizer has no fast version, which rin needs to map tokens to the text",
                hint="save the checkpoint with a tokenizer.json",
            )
        self._tokenizer = tokenizer
        self._settings = settings
        self._renderer = Renderer(tokenizer, settings)

    def examples(self, rows: Iterable[Row]) -> Iterator[Example | BadRow]:
        """Tokenise rows in order; a row without anything to learn becomes a `BadRow`."""
        for part in _parts(rows, _TOKENIZE_ROWS):
            rendered: list[Rendered | BadRow] = []
            for row in part:
                try:
                    rendered.append(self._renderer.row(row))
                except RowError as error:
                    rendered.append(BadRow(row.file, row.line, str(error)))
            good = [item for item in rendered if isinstance(item, Rendered)]
            tokens = iter(self._tokenize(good))
            for row, item in zip(part, rendered, strict=True):
                if isinstance(item, BadRow):
                    yield item
                else:
                    yield self._finish(row, item, *next(tokens))

    def _finish(
        self, row: Row, item: Rendered, ids: list[int], labels: list[int]
    ) -> Example | BadRow:
        eos = self._tokenizer.eos_token_id
        if self._settings.append_eos and eos is not None and item.special:
            # Some tokenizers add EOS themselves; it is learnt all the same.
            kept = len(ids) - 1 if ids[-1:] == [eos] else len(ids)
            ids, labels = [*ids[:kept], eos], [*labels[:kept], eos]
        if item.tokens is not None:
            row = self._decoded(row, ids, labels)
        limit, cut = self._settings.max_tokens, self._settings.cut
        long = len(ids) > limit and item.tokens is None  # tokens are as training made them
        if long and cut == "drop":
            reason = f"{len(ids)} tokens are more than max_tokens = {limit}"
            return BadRow(row.file, row.line, reason, dropped=True)
        kept_part = slice(-limit, None) if cut == "left" else slice(limit)
        example = Example(
            row,
            np.array(ids[kept_part] if long else ids, dtype=np.int32),
            np.array(labels[kept_part] if long else labels, dtype=np.int32),
            truncated=long,
        )
        if len(example.input_ids) and example.learnt:
            return example
        after = f" after cutting {len(ids)} tokens to {limit}" if long else ""
        # Trainers drop what they have cut to nothing, and learn nothing of unlearnt turns.
        unlearnt = long or Extras.SILENT in row.extras or item.tokens is not None
        return BadRow(row.file, row.line, f"no labelled token is left{after}", dropped=unlearnt)

    def _decoded(self, row: Row, ids: list[int], labels: list[int]) -> Row:
        """Give a row of tokens its texts, to show."""
        texts = [
            self._tokenizer.decode(
                [t for t, label in zip(ids, labels, strict=True) if (label != IGNORED) is learnt]
            )
            for learnt in (False, True)
        ]
        return replace(row, prompt=texts[0], response=texts[1])

    def query(self, prompt: str, response: str) -> Example:
        """Encode a prompt and the response to be explained, without EOS.

        Raises:
            InputError: the response has no token.
        """
        with _as_question():
            text = self._renderer.before_response(prompt, response)
        return self._query(prompt, response, text, response, special=not self._settings.chat)

    def query_of_row(self, row: Row, contrast: str = "") -> Example:
        """Encode a row as a query: its context as the prompt, its last response explained.

        Args:
            contrast: a response in place of its own.

        Raises:
            InputError: no response, or a contrast to tokens, which have no place for it.
        """
        if any(key in row.extras for key in (Extras.TOKENS, Extras.PARTS)):
            if contrast:
                raise InputError(
                    f"row {row.id!r} holds tokens, so there is no place for a contrast",
                    hint="rin retrieve --prompt TEXT --response TEXT --contrast TEXT",
                )
            (ids, labels), *_ = self._tokenize([self._renderer.row(row)])
            return _query_example(row.prompt, row.response, ids, labels)
        response = contrast or row.response
        if row.messages is not None:
            with _as_question():
                text, said = self._renderer.last_answer(row)
            return self._query(row.prompt, response, text, contrast or said, special=False)
        if not row.fields:  # plain text has no template
            return self._query(row.prompt, response, "", response, special=True)
        if self._settings.chat:
            return self.query(row.prompt, response)
        with _as_question():
            text = self._renderer.prefix(row.fields, row.prompt)
        return self._query(row.prompt, response, text, response, special=True)

    def _query(self, prompt: str, response: str, text: str, said: str, *, special: bool) -> Example:
        span = (len(text), len(text + said))
        ids, labels = self._tokenize([Rendered(text + said, (span,), special)])[0]
        return _query_example(prompt, response, ids, labels)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of `prompt_text`."""
        with _as_question():
            text = self._renderer.prompt_text(prompt)
        special = not self._settings.chat
        ids = list(self._tokenizer(text, add_special_tokens=special).input_ids)
        # A tokenizer that adds EOS must not end the text that is to be continued.
        added = special and ids[-1:] == [self._tokenizer.eos_token_id]
        return ids[:-1] if added else ids

    def _tokenize(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        results: dict[int, Encoded] = {}
        for n, item in enumerate(rendered):
            if item.tokens is not None:
                results[n] = item.tokens
            elif item.pieces is not None:
                results[n] = self._in_pieces(item.pieces)
            elif self._settings.join == "tokens":
                results[n] = self._in_pieces(item.cut(), special=item.special)
        for special in (False, True):
            group = [
                n for n, item in enumerate(rendered) if item.special is special and n not in results
            ]
            if not group:
                continue
            encoded = self._tokenizer(
                [rendered[n].text for n in group],
                add_special_tokens=special,
                return_offsets_mapping=True,
            )
            for n, ids, offsets in zip(
                group, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                prefix = rendered[n].prefix
                if prefix is None:
                    labels = labels_of_spans(ids, offsets, rendered[n].spans)
                else:
                    before = self._tokenizer(prefix, add_special_tokens=special).input_ids
                    labels = labels_after(ids, before)
                results[n] = (list(ids), labels)
        return [results[n] for n in range(len(rendered))]

    def _in_pieces(self, pieces: Sequence[tuple[str, bool]], *, special: bool = False) -> Encoded:
        """Tokenise texts one by one, after what the tokenizer puts first if `special`."""
        ids: list[int] = []
        labels: list[int] = []
        if special:
            start = self._tokenizer("", add_special_tokens=True).input_ids
            ids = [token for token in start if token != self._tokenizer.eos_token_id]
            labels = [IGNORED] * len(ids)
        for text, learnt in pieces:
            part = self._tokenizer(text, add_special_tokens=False).input_ids
            ids += part
            labels += part if learnt else [IGNORED] * len(part)
        return ids, labels


@contextmanager
def _as_question() -> Iterator[None]:
    """Say of a question what would be said of a row."""
    try:
        yield
    except RowError as error:
        raise InputError(
            f"the question cannot be rendered as a row of training: {error}",
            hint="rin retrieve --queries FILE takes rows with all fields, --row one of the data",
        ) from None


def _query_example(prompt: str, response: str, ids: list[int], labels: list[int]) -> Example:
    row = Row("", 0, "query", prompt, response)
    example = Example(row, np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32))
    if not example.learnt:
        raise InputError("the response has no token to explain", hint="give --response text")
    return example


def labels_after(ids: list[int], prefix: list[int]) -> list[int]:
    """Label all tokens from the first that is not the prefix's, as TRL does.

    A token on the border, of the prompt's end and the response's beginning, is learnt.
    """
    pairs = enumerate(zip(ids, prefix, strict=False))
    shared = next((n for n, (one, other) in pairs if one != other), min(len(ids), len(prefix)))
    return [IGNORED] * shared + ids[shared:]


def labels_of_spans(
    ids: list[int], offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Label the tokens that overlap a span.

    Added special tokens have the offset (0, 0). Tokenizers that trim white space from
    offsets leave tokens of nothing else without width: they count where they stand.
    """
    return [
        token
        if any((a < stop and b > start) if a < b else start < a <= stop for start, stop in spans)
        else IGNORED
        for token, (a, b) in zip(ids, offsets, strict=True)
    ]


Item = TypeVar("Item")


def _parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
