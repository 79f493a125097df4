"""From rows and questions to tokens, exactly as the template says."""

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from rapidin_cli.data.examples import IGNORED, Example
from rapidin_cli.data.files import RowError
from rapidin_cli.data.reading import BadRow, DataSettings, Message, Row
from rapidin_cli.errors import InputError

_TOKENIZE_ROWS = 256
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input_section}"
    "### Response:\n"
)


@dataclass(frozen=True)
class _Rendered:
    text: str
    spans: tuple[tuple[int, int], ...]  # characters that are learnt
    special: bool  # whether the tokenizer adds BOS and the like (a chat template does itself)


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
        self._chat_template = _on_the_day(tokenizer.chat_template, settings.date)
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
                    yield self._finish(row, *next(tokens), may_end=item.special)

    def _finish(
        self, row: Row, ids: list[int], labels: list[int], *, may_end: bool
    ) -> Example | BadRow:
        eos = self._tokenizer.eos_token_id
        if self._settings.append_eos and eos is not None and may_end:
            # Some tokenizers add EOS themselves; it is learnt all the same.
            kept = len(ids) - 1 if ids[-1:] == [eos] else len(ids)
            ids, labels = [*ids[:kept], eos], [*labels[:kept], eos]
        limit = self._settings.max_tokens
        example = Example(
            row,
            np.array(ids[:limit], dtype=np.int32),
            np.array(labels[:limit], dtype=np.int32),
            truncated=len(ids) > limit,
        )
        if example.learnt:
            return example
        cut = f" after cutting {len(ids)} tokens to {limit}" if example.truncated else ""
        return BadRow(row.file, row.line, f"no labelled token is left{cut}")

    def query(self, prompt: str, response: str) -> Example:
        """Encode a prompt and the response to be explained, without EOS.

        Raises:
            InputError: the response has no token.
        """
        return self._query(prompt, response, self.prompt_text(prompt), special=self._special)

    def query_of_row(self, row: Row) -> Example:
        """Encode a row as a query: its context as the prompt, its last response explained."""
        special = self._special
        if row.messages is None and not row.fields:  # plain text has no template
            text, special = "", True
        elif row.messages is None:
            text = self._prefix(row.fields, row.prompt)
        else:
            special = False
            last = max(n for n, m in enumerate(row.messages) if m["role"] == "assistant")
            text = self._chat(row.messages[:last], generation=True)
        return self._query(row.prompt, row.response, text, special=special)

    def _query(self, prompt: str, response: str, text: str, *, special: bool) -> Example:
        span = (len(text), len(text + response))
        rendered = _Rendered(text + response, (span,), special)
        ids, labels = self._tokenize([rendered])[0]
        row = Row("", 0, "query", prompt, response)
        example = Example(row, np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32))
        if not example.learnt:
            raise InputError("the response has no token to explain", hint="give --response text")
        return example

    def prompt_text(self, prompt: str) -> str:
        """Return the text that the model reads before it answers `prompt`."""
        return self._prefix({"prompt": prompt, "instruction": prompt, "input": ""}, prompt)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of `prompt_text`."""
        text = self.prompt_text(prompt)
        ids = list(self._tokenizer(text, add_special_tokens=self._special).input_ids)
        # A tokenizer that adds EOS must not end the text that is to be continued.
        added = self._special and ids[-1:] == [self._tokenizer.eos_token_id]
        return ids[:-1] if added else ids

    @property
    def _special(self) -> bool:
        return self._settings.template != "chat"

    def _prefix(self, fields: dict[str, str], prompt: str) -> str:
        template = self._settings.template
        if template == "chat":
            return self._chat([{"role": "user", "content": prompt}], generation=True)
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
        if row.messages is not None:
            return self._render_chat(row.messages)
        if not row.fields:
            return _Rendered(row.response, ((0, len(row.response)),), special=True)
        if self._settings.template == "chat":
            return self._render_chat(
                (
                    {"role": "user", "content": row.prompt},
                    {"role": "assistant", "content": row.response},
                )
            )
        prefix = self._prefix(row.fields, row.prompt)
        text = prefix + row.response
        return _Rendered(text, ((len(prefix), len(text)),), special=True)

    def _render_chat(self, messages: Sequence[Message]) -> _Rendered:
        """Find each assistant turn, its end-of-turn token included, by growing the chat."""
        text = self._chat(messages)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if number == 0:
                raise RowError("the conversation begins with the assistant")
            before = self._chat(messages[:number], generation=True)
            after = self._chat(messages[: number + 1])
            if not (text.startswith(before) and text.startswith(after.rstrip())):
                raise RowError(
                    f"the chat template rewrites earlier turns, so turn {number} cannot be found"
                )
            spans.append((len(before), len(after.rstrip())))
        return _Rendered(text, tuple(spans), special=False)

    def _chat(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=generation,
                    chat_template=self._chat_template,
                )
            )
        except TemplateSyntaxError as error:
            raise InputError(
                f"the tokenizer's chat template is broken at line {error.lineno}: {error.message}",
                hint="correct chat_template.jinja, or chat_template in tokenizer_config.json",
            ) from None
        except (TemplateError, TypeError, LookupError, ValueError, AttributeError) as error:
            raise RowError(f"the chat template rejects this conversation: {error}") from None

    def _tokenize(self, rendered: Sequence[_Rendered]) -> list[tuple[list[int], list[int]]]:
        results: dict[int, tuple[list[int], list[int]]] = {}
        for special in (False, True):
            group = [n for n, item in enumerate(rendered) if item.special is special]
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
                results[n] = (list(ids), labels_of_spans(ids, offsets, rendered[n].spans))
        return [results[n] for n in range(len(rendered))]


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


def _on_the_day(chat_template: Any, date: str) -> Any:
    """Return the template with the day of training in place of today's date.

    Otherwise the tokens would differ tomorrow. The calls are replaced in the template's text,
    because transformers gives a template no way to replace its functions.

    Raises:
        InputError: not a date, or no date although the template writes one.
    """
    try:
        day = datetime.date.fromisoformat(date) if date else None
    except ValueError:
        raise InputError(
            f"[data] date = {date!r} is not YYYY-MM-DD", hint="correct rin.toml"
        ) from None
    if not isinstance(chat_template, str) or "strftime_now(" not in chat_template:
        return chat_template
    if day is None:
        raise InputError(
            "the chat template writes today's date into every conversation",
            hint='set [data] date = "YYYY-MM-DD" in rin.toml to the day of training',
        )
    return _TODAY.sub(lambda call: json.dumps(day.strftime(call.group(2))), chat_template)


Item = TypeVar("Item")


def _parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
