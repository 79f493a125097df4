"""From rows and questions to text, and which of it is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rapidin_cli.data.chat import ChatTemplate, Conversation, Span
from rapidin_cli.data.files import RowError
from rapidin_cli.data.rows import DataSettings, Extras, Row
from rapidin_cli.data.turns import last_answer
from rapidin_cli.errors import InputError

ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input_section}"
    "### Response:\n"
)

LONG_ALPACA = ALPACA.format(with_input="", instruction="{prompt}", input_section="")
"""LLaMA-Factory's template `alpaca`: one text, with the input as a line of the instruction."""


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        spans: characters that are learnt.
        special: whether the tokenizer adds BOS and the like (a chat template does itself).
        prefix: what follows the tokens of this text is learnt, instead of spans.
        borders: where the text is cut if parts are tokenised one by one; else the ends of spans.
        pieces: texts that are tokenised one by one, and whether each is learnt.
        tokens: ids and labels, instead of a text.
    """

    text: str
    spans: tuple[Span, ...] = ()
    special: bool = False
    prefix: str | None = None
    borders: tuple[int, ...] = ()
    pieces: tuple[tuple[str, bool], ...] | None = None
    tokens: tuple[list[int], list[int]] | None = None

    def cut(self) -> list[tuple[str, bool]]:
        """The parts of the text, each with whether it is learnt."""
        spans = self.spans if self.prefix is None else ((len(self.prefix), len(self.text)),)
        ends = {0, len(self.text), *self.borders, *(end for span in spans for end in span)}
        return [
            (self.text[start:stop], any(a <= start and stop <= b for a, b in spans))
            for start, stop in pairwise(sorted(ends))
        ]


class Renderer:
    """Renders rows and prompts by the template.

    Args:
        tokenizer: of Hugging Face; its chat template is taken unless the settings hold one.
        settings: the `[data]` table.

    Raises:
        InputError: a template that cannot work.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings) -> None:
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

    def row(self, row: Row) -> Rendered:
        """Render a row.

        Raises:
            RowError: its template rejects it, or an answer cannot be found.
        """
        everything = self._settings.learn == "all"
        if Extras.TOKENS in row.extras:
            ids, labels = row.extras[Extras.TOKENS]
            self._check_ids(ids)
            return Rendered("", tokens=(ids, labels))
        if Extras.PARTS in row.extras:
            pieces = tuple((text, learnt) for text, learnt in row.extras[Extras.PARTS])
            return Rendered("".join(text for text, _ in pieces), pieces=pieces)
        if row.messages is not None:
            return self._render_chat(row, _conversation(row))
        if not row.fields:
            return Rendered(row.response, ((0, len(row.response)),), special=True)
        if self._settings.chat:
            return self._render_chat(row, Conversation(_one_turn(row.prompt, row.response)))
        prefix = self.prefix(row.fields, row.prompt)
        text = prefix + row.response
        if everything:
            return Rendered(text, ((0, len(text)),), special=True, borders=(len(prefix),))
        if Extras.AFTER in row.extras:
            return Rendered(text, special=True, prefix=prefix)
        return Rendered(text, ((len(prefix), len(text)),), special=True)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not 0 <= min(ids, default=0) <= max(ids, default=0) < len(self._tokenizer):
            raise RowError(f"input_ids are not of this tokenizer: it has {len(self._tokenizer):,}")

    def _render_chat(self, row: Row, chat: Conversation) -> Rendered:
        learn = self._settings.learn
        apart = self._settings.join == "tokens"
        if learn == "all" and not apart:
            text = self._chat.text(chat)
            return Rendered(text, ((0, len(text)),))
        context = row.extras.get(Extras.CONTEXT)
        if context is not None and apart:
            raise RowError('[data] join = "tokens" is not for a prompt and completion of messages')
        if context is not None:
            prefix = self._chat.text(chat.until(context), generation=True)
            return Rendered(self._chat.text(chat), prefix=prefix)
        text, found = self._chat.render(chat)
        borders = tuple(end for spans in found.values() for span in spans for end in span)
        if learn == "all":
            return Rendered(text, ((0, len(text)),), borders=borders)
        silent = row.extras.get(Extras.SILENT, ())
        if -1 in found and (silent or learn == "last"):
            raise RowError("the chat template's {% generation %} marks do not tell turns apart")
        turns = [number for number in found if number not in silent]
        chosen = turns[-1:] if learn == "last" else turns
        spans = tuple(span for number in chosen for span in found[number])
        return Rendered(text, spans, borders=borders)

    def prompt_text(self, prompt: str) -> str:
        """Return the text that the model reads before it answers `prompt`."""
        return self.prefix({"prompt": prompt, "instruction": prompt, "input": ""}, prompt)

    def before_response(self, prompt: str, response: str) -> str:
        """Return the text that stands before a response to `prompt` in a row of training."""
        if not self._settings.chat:
            return self.prompt_text(prompt)
        return self._chat.before_answer(Conversation(_one_turn(prompt, response)), 1)

    def last_answer(self, row: Row) -> tuple[str, str]:
        """Return the text before the last answer of a conversation, and the answer."""
        chat = _conversation(row)
        last = last_answer(chat.messages)
        said = chat.messages[last].get("content")
        if said and not chat.messages[last].get("tool_calls"):
            return self._chat.before_answer(chat, last), said
        chat = chat.until(last + 1)
        text, spans = self._chat.render(chat)
        start, stop = spans[last][-1]
        return text[:start], text[start:stop]

    def prefix(self, fields: dict[str, str], prompt: str) -> str:
        """Return the text before a response that is no conversation's."""
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


def _one_turn(prompt: str, response: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _conversation(row: Row) -> Conversation:
    extras = row.extras
    return Conversation(row.messages or (), extras.get(Extras.TOOLS), extras.get(Extras.OPTIONS))
