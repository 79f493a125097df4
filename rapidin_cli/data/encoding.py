"""From rows and questions to tokens, exactly as the template says."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from rapidin_cli.data.chat import ChatTemplate, Conversation, Span
from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.files import RowError
from rapidin_cli.data.rows import BadRow, DataSettings, Extras, Row
from rapidin_cli.data.turns import last_answer
from rapidin_cli.errors import InputError

_TOKENIZE_ROWS = 256

ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input_section}"
    "### Response:\n"
)

LONG_ALPACA = ALPACA.format(with_input="", instruction="{prompt}", input_section="")
"""LLaMA-Factory's template `alpaca`: one text, with the input as a line of the instruction."""


@dataclass(frozen=True)
class _Rendered:
    """A row as text.

    Attributes:
        spans: characters that are learnt.
        special: whether the tokenizer adds BOS and the like (a chat template does itself).
        prefix: what follows the tokens of this text is learnt, instead of spans.
        pieces: texts that are tokenised one by one, and whether each is learnt.
        tokens: ids and labels, instead of a text.
    """

    text: str
    spans: tuple[Span, ...] = ()
    special: bool = False
    prefix: str | None = None
    pieces: tuple[tuple[str, bool], ...] | None = None
    tokens: tuple[list[int], list[int]] | None = None


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
        template = settings.template
        if template == "chat" and not tokenizer.chat_template:
            raise InputError(
                'template = "chat", but the tokenizer has no chat template',
                hint="set [data] template in rin.toml to what training used",
            )
        self._chat = ChatTemplate(tokenizer, settings.jinja, settings.date)
        if template not in ("chat", "alpaca", "plain") and "{" not in template:
            raise InputError(
                f"[data] template = {template!r} is neither chat, alpaca or plain nor a text "
                "with {prompt} in it",
                hint="correct rin.toml",
            )

    def examples(self, rows: Iterable[Row]) -> Iterator[Example | BadRow]:
        """Tokenise rows in order; a row without anything to learn becomes a `BadRow`."""
        for part in _parts(rows, _TOKENIZE_ROWS):
            rendered: list[_Rendered | BadRow] = []
            for row in part:
                try:
                    rendered.append(self._render(row))
                except RowError as error:
                    rendered.append(BadRow(row.file, row.line, str(error)))
            good = [item for item in rendered if isinstance(item, _Rendered)]
            tokens = iter(self._tokenize(good))
            for row, item in zip(part, rendered, strict=True):
                if isinstance(item, BadRow):
                    yield item
                else:
                    yield self._finish(row, item, *next(tokens))

    def _finish(
        self, row: Row, item: _Rendered, ids: list[int], labels: list[int]
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
            if self._settings.chat:
                turns = _one_turn(prompt, response)
                text = self._chat.before_answer(Conversation(turns), 1)
            else:
                text = self.prompt_text(prompt)
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
            (ids, labels), *_ = self._tokenize([self._render(row)])
            return _query_example(row.prompt, row.response, ids, labels)
        response = contrast or row.response
        if row.messages is not None:
            with _as_question():
                text, said = self._last_answer(_conversation(row))
            return self._query(row.prompt, response, text, contrast or said, special=False)
        if not row.fields:  # plain text has no template
            return self._query(row.prompt, response, "", response, special=True)
        if self._settings.chat:
            return self.query(row.prompt, response)
        with _as_question():
            text = self._prefix(row.fields, row.prompt)
        return self._query(row.prompt, response, text, response, special=True)

    def _last_answer(self, chat: Conversation) -> tuple[str, str]:
        """Return the text before the last answer of a conversation, and the answer."""
        last = last_answer(chat.messages)
        said = chat.messages[last].get("content")
        if said and not chat.messages[last].get("tool_calls"):
            return self._chat.before_answer(chat, last), said
        chat = chat.until(last + 1)
        text, spans = self._chat.render(chat)
        start, stop = spans[last][-1]
        return text[:start], text[start:stop]

    def _query(self, prompt: str, response: str, text: str, said: str, *, special: bool) -> Example:
        span = (len(text), len(text + said))
        ids, labels = self._tokenize([_Rendered(text + said, (span,), special)])[0]
        return _query_example(prompt, response, ids, labels)

    def prompt_text(self, prompt: str) -> str:
        """Return the text that the model reads before it answers `prompt`."""
        return self._prefix({"prompt": prompt, "instruction": prompt, "input": ""}, prompt)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of `prompt_text`."""
        with _as_question():
            text = self.prompt_text(prompt)
        special = not self._settings.chat
        ids = list(self._tokenizer(text, add_special_tokens=special).input_ids)
        # A tokenizer that adds EOS must not end the text that is to be continued.
        added = special and ids[-1:] == [self._tokenizer.eos_token_id]
        return ids[:-1] if added else ids

    def _prefix(self, fields: dict[str, str], prompt: str) -> str:
        template = self._settings.template
        if self._settings.chat:
            return self._chat.text(Conversation(_one_turn(prompt, "")[:1]), generation=True)
        if template == "plain":
            return prompt
        if template == "alpaca":
            extra = fields.get("input", "")
            return ALPACA.format(
                with_input=", paired with an input that provides further context" if extra else "",
                instruction=fields.get("instruction", prompt),
                input_section=f"### Input:\n{extra}\n\n" if extra else "",
            )
        try:
            return template.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise RowError(f"[data] template cannot be filled in: {reason}") from None

    def _render(self, row: Row) -> _Rendered:
        everything = self._settings.learn == "all"
        if Extras.TOKENS in row.extras:
            ids, labels = row.extras[Extras.TOKENS]
            self._check_ids(ids)
            return _Rendered("", tokens=(ids, labels))
        if Extras.PARTS in row.extras:
            pieces = tuple((text, learnt) for text, learnt in row.extras[Extras.PARTS])
            return _Rendered("".join(text for text, _ in pieces), pieces=pieces)
        if row.messages is not None:
            return self._render_chat(row, _conversation(row))
        if not row.fields:
            return _Rendered(row.response, ((0, len(row.response)),), special=True)
        if self._settings.chat:
            return self._render_chat(row, Conversation(_one_turn(row.prompt, row.response)))
        prefix = self._prefix(row.fields, row.prompt)
        text = prefix + row.response
        if everything:
            return _Rendered(text, ((0, len(text)),), special=True)
        if Extras.AFTER in row.extras:
            return _Rendered(text, special=True, prefix=prefix)
        return _Rendered(text, ((len(prefix), len(text)),), special=True)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not 0 <= min(ids, default=0) <= max(ids, default=0) < len(self._tokenizer):
            raise RowError(f"input_ids are not of this tokenizer: it has {len(self._tokenizer):,}")

    def _render_chat(self, row: Row, chat: Conversation) -> _Rendered:
        learn = self._settings.learn
        if learn == "all":
            text = self._chat.text(chat)
            return _Rendered(text, ((0, len(text)),))
        context = row.extras.get(Extras.CONTEXT)
        if context is not None:
            prefix = self._chat.text(chat.until(context), generation=True)
            return _Rendered(self._chat.text(chat), prefix=prefix)
        text, found = self._chat.render(chat)
        silent = row.extras.get(Extras.SILENT, ())
        if -1 in found and (silent or learn == "last"):
            raise RowError("the chat template's {% generation %} marks do not tell turns apart")
        turns = [number for number in found if number not in silent]
        chosen = turns[-1:] if learn == "last" else turns
        return _Rendered(text, tuple(span for number in chosen for span in found[number]))

    def _tokenize(self, rendered: Sequence[_Rendered]) -> list[Encoded]:
        results: dict[int, Encoded] = {
            n: item.tokens if item.tokens is not None else self._in_pieces(item.pieces or ())
            for n, item in enumerate(rendered)
            if item.tokens is not None or item.pieces is not None
        }
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

    def _in_pieces(self, pieces: Sequence[tuple[str, bool]]) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
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


def _one_turn(prompt: str, response: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _conversation(row: Row) -> Conversation:
    extras = row.extras
    return Conversation(row.messages or (), extras.get(Extras.TOOLS), extras.get(Extras.OPTIONS))


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
