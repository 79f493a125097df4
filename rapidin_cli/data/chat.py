"""Conversations through a chat template: the whole text at once, and where each answer stands.

A trainer renders a conversation once. Many templates write an earlier turn otherwise than the
last one (they drop its thoughts), so an answer is looked for in that one text.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapidin_cli.data.files import RowError
from rapidin_cli.data.rows import Message
from rapidin_cli.errors import InputError

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT = "</think>"
# Stands for an answer, to see where a template puts it: of a range that no text uses.
_MARK = "\ue000rin\ue000"

Span = tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """What a chat template renders.

    Attributes:
        messages: its turns.
        tools: descriptions of tools, or None.
        options: other arguments of the template, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    options: Mapping[str, Any] | None = None

    def until(self, stop: int) -> "Conversation":
        """Return only the first `stop` turns."""
        return Conversation(self.messages[:stop], self.tools, self.options)

    def saying(self, number: int, text: str) -> "Conversation":
        """Return the same with another text in one turn."""
        turns = list(self.messages)
        turns[number] = {**turns[number], "content": text}
        return Conversation(turns, self.tools, self.options)


class ChatTemplate:
    """A chat template.

    Args:
        tokenizer: of Hugging Face; renders.
        template: its text; the tokenizer's own if None.
        date: the day of training, for templates that write it.

    Raises:
        InputError: no date, or not one, although the template writes one.
    """

    def __init__(self, tokenizer: Any, template: str | None, date: str) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.chat_template
        if isinstance(own, dict):  # several, by name
            own = own.get("default")
        self._template = _on_the_day(template if template is not None else own, date)

    def text(self, chat: Conversation, *, generation: bool = False) -> str:
        """Render a conversation; with `generation`, up to where an answer begins.

        Raises:
            RowError: the template rejects it.
            InputError: the template is broken.
        """
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(chat.messages),
                    tools=None if chat.tools is None else list(chat.tools),
                    tokenize=False,
                    add_generation_prompt=generation,
                    chat_template=self._template,
                    **(chat.options or {}),
                )
            )
        except TemplateSyntaxError as error:
            raise InputError(
                f"the chat template is broken at line {error.lineno}: {error.message}",
                hint="correct chat_template.jinja, or chat_template in tokenizer_config.json",
            ) from None
        except (TemplateError, TypeError, LookupError, ValueError, AttributeError) as error:
            raise RowError(f"the chat template rejects this conversation: {error}") from None

    def render(self, chat: Conversation) -> tuple[str, dict[int, list[Span]]]:
        """Return the text, and where in it each assistant turn stands, its end mark included.

        Found by the template's own `{% generation %}` marks; else by rendering it turn by turn;
        else by putting a mark in place of one answer after the other.

        Raises:
            RowError: the template rejects the conversation, or a turn cannot be found for certain.
        """
        text = self.text(chat)
        answers = [n for n, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if isinstance(self._template, str) and _MARKED.search(self._template):
            return text, self._marked(chat, answers)
        return text, {number: [self._find(chat, text, number)] for number in answers}

    def _marked(self, chat: Conversation, answers: Sequence[int]) -> dict[int, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self._tokenizer.special_tokens_map, **(chat.options or {})}
        _, marked = render_jinja_template(
            [list(chat.messages)],
            tools=None if chat.tools is None else list(chat.tools),
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **options,
        )
        spans = [(start, stop) for start, stop in marked[0] if start < stop]
        if not spans:
            raise RowError("the chat template's {% generation %} marks hold nothing of it")
        if len(spans) == len(answers):
            return {number: [span] for number, span in zip(answers, spans, strict=True)}
        return {answers[-1] if len(answers) == 1 else -1: spans}

    def _find(self, chat: Conversation, text: str, number: int) -> Span:
        before, after = self._around(chat, number)
        known = before is not None and text.startswith(before)
        if known and after is not None and text.startswith(after):
            return len(before or ""), len(after)
        content = chat.messages[number].get("content") or ""
        thought, mark, _ = content.rpartition(_THOUGHT)
        for start in dict.fromkeys(["", thought + mark + "\n\n" if mark else ""]):
            span = self._in_place(chat, text, number, start)
            if span is not None:
                return (min(len(before or ""), span[0]) if known else span[0]), span[1]
        raise RowError(
            f"the chat template rewrites earlier turns, so turn {number} cannot be found in it"
        )

    def _around(self, chat: Conversation, number: int) -> tuple[str | None, str | None]:
        """The text before a turn, and the text with it, rendered alone; None if it cannot be."""
        try:
            before = self.text(chat.until(number), generation=True) if number else None
            return before, self.text(chat.until(number + 1)).rstrip()
        except RowError:
            return None, None

    def _in_place(self, chat: Conversation, text: str, number: int, start: str) -> Span | None:
        """Find a turn by a mark in place of what it says; `start` keeps its thought."""
        marked = chat.saying(number, start + _MARK)
        try:
            whole, alone = self.text(marked), self.text(marked.until(number + 1))
        except RowError:
            return None
        if whole.count(_MARK) != 1 or alone.count(_MARK) != 1:
            return None
        head, tail = whole.split(_MARK)
        end = alone.split(_MARK)[1].rstrip()
        stop = len(text) - len(tail)
        fits = text.startswith(head) and text.endswith(tail) and tail.startswith(end)
        return (len(head), stop + len(end)) if fits and len(head) <= stop else None

    def before_answer(self, chat: Conversation, number: int) -> str:
        """Return the text that stands before what a turn says, as in a row of training.

        Templates of models that think put an empty thought before an answer without one, and
        do not where they prompt for it.
        """
        prompted = self.text(chat.until(number), generation=True)
        said = chat.messages[number].get("content") or ""
        if _THOUGHT in said or chat.messages[number].get("reasoning_content"):
            return prompted
        whole = self.text(chat.until(number + 1).saying(number, _MARK))
        head, mark, _ = whole.partition(_MARK)
        return (
            head if mark and _MARK not in head and head.startswith(prompted.rstrip()) else prompted
        )


def _on_the_day(template: Any, date: str) -> Any:
    """Return the template with the day of training in place of today's date.

    Otherwise the tokens would differ tomorrow. The calls are replaced in the template's text,
    because transformers gives a template no way to replace its functions.
    """
    try:
        day = datetime.date.fromisoformat(date) if date else None
    except ValueError:
        raise InputError(
            f"[data] date = {date!r} is not YYYY-MM-DD", hint="correct rin.toml"
        ) from None
    if not isinstance(template, str) or "strftime_now(" not in template:
        return template
    if day is None:
        raise InputError(
            "the chat template writes today's date into every conversation",
            hint='set [data] date = "YYYY-MM-DD" in rin.toml to the day of training',
        )
    return _TODAY.sub(lambda call: json.dumps(day.strftime(call.group(2))), template)
