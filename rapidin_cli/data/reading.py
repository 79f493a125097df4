"""Reading training rows: files, shapes, and what is wrong with a row."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidin_cli.data.files import RowError, read_values

Message = dict[str, str]

HALF_PAIR = re.compile("[\ud800-\udfff]")

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}


@dataclass(frozen=True)
class DataSettings:
    """The `[data]` table of rin.toml.

    Attributes:
        files: JSONL, JSON lists, CSV, Parquet or datasets folders, relative to the project.
        format: `auto`, `prompt`, `alpaca`, `messages`, `conversations` or `text`.
        template: how prompt and response become one text: `chat` (the tokenizer's chat
            template), `alpaca`, `plain` (joined as they are), or a text of your own that
            ends where the response begins and contains `{prompt}` (for Alpaca rows also
            `{instruction}` and `{input}`).
        prompt_field, response_field, text_field, id_field: names of the row's fields.
        max_tokens: longer rows are cut there, as in training.
        append_eos: whether training ended every response with the EOS token (chat
            templates end turns themselves).
        date: the day of training, YYYY-MM-DD, for chat templates that write the date.
    """

    files: tuple[str, ...] = ()
    format: str = "auto"
    template: str = "plain"
    prompt_field: str = "prompt"
    response_field: str = "response"
    text_field: str = "text"
    id_field: str = "id"
    max_tokens: int = 1024
    append_eos: bool = True
    date: str = ""

    def rendering(self) -> dict[str, Any]:
        """What decides the text of a row: part of the tokenizer fingerprint."""
        return {"template": self.template, "append_eos": self.append_eos, "date": self.date}


@dataclass(frozen=True)
class Row:
    """One row before tokenisation.

    Attributes:
        place: file and line, for messages.
        id: from the row, or `file:line`.
        prompt, response: to show; `response` is the last assistant turn of a chat.
        messages: the turns of a chat row, else None.
        fields: what a template may name.
    """

    file: str
    line: int
    id: str
    prompt: str
    response: str
    messages: tuple[Message, ...] | None = None
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def guess_format(value: Any, settings: DataSettings) -> str | None:
    """Guess the format from a row's fields; None if they match none."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("messages"), list):
        return "messages"
    if isinstance(value.get("conversations"), list):
        return "conversations"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if settings.prompt_field in value and settings.response_field in value:
        return "prompt"
    if settings.text_field in value:
        return "text"
    return None


def read_rows(root: Path, settings: DataSettings) -> Iterator[Row | BadRow]:
    """Yield every row of all files in order, the bad ones as `BadRow`."""
    for _, row in read_pairs(root, settings):
        yield row


def read_pairs(root: Path, settings: DataSettings) -> Iterator[tuple[Any, Row | BadRow]]:
    """Do the same as `read_rows`, but also yield the value of each row from its file.

    For a broken line that is a `RowError`.
    """
    seen: dict[str, str] = {}
    for name in settings.files:
        chosen = None if settings.format == "auto" else settings.format
        for line, value in read_values(root / name, name):
            try:
                if isinstance(value, RowError):
                    raise value
                chosen = chosen or guess_format(value, settings)
                if chosen is None:
                    raise RowError(_unknown_shape(value, settings))
                row = parse_row(value, chosen, settings, name, line)
                if row.id in seen:
                    raise RowError(f"id {row.id!r} is already used by {seen[row.id]}")
                seen[row.id] = f"{name}:{line}"
                yield value, row
            except RowError as error:
                yield value, BadRow(name, line, str(error))


def _unknown_shape(value: Any, settings: DataSettings) -> str:
    if not isinstance(value, dict):
        return f"a row must be a JSON object, not {type(value).__name__}"
    fields = ", ".join(map(repr, list(value)[:6])) or "no fields"
    return (
        f"unknown shape ({fields}): expected messages, conversations, instruction/output, "
        f"{settings.prompt_field}/{settings.response_field} or {settings.text_field}"
    )


def parse_row(value: Any, shape: str, settings: DataSettings, file: str, line: int) -> Row:
    """Check one row's fields and return it.

    Raises:
        RowError: a field is missing, empty or of the wrong type.
    """
    if not isinstance(value, dict):
        raise RowError(_unknown_shape(value, settings))
    identity = value.get(settings.id_field)
    name = f"{file}:{line}" if identity in (None, "") else str(identity)
    if HALF_PAIR.search(name):
        raise RowError(f"field {settings.id_field!r} contains half a surrogate pair")
    match shape:
        case "prompt":
            prompt = _text(value, settings.prompt_field, empty=True)
            response = _text(value, settings.response_field)
            return Row(file, line, name, prompt, response, None, {"prompt": prompt})
        case "alpaca":
            instruction = _text(value, "instruction")
            extra = _text(value, "input", empty=True) if value.get("input") is not None else ""
            prompt = f"{instruction}\n{extra}" if extra else instruction
            fields = {"instruction": instruction, "input": extra, "prompt": prompt}
            return Row(file, line, name, prompt, _text(value, "output"), None, fields)
        case "text":
            return Row(file, line, name, "", _text(value, settings.text_field))
        case _:
            return _parse_chat(value, shape, file, line, name)


def _text(value: dict[str, Any], name: str, *, empty: bool = False) -> str:
    if name not in value:
        raise RowError(f"field {name!r} is missing")
    text = value[name]
    if not isinstance(text, str):
        raise RowError(f"field {name!r} must be text, not {type(text).__name__}")
    if HALF_PAIR.search(text):
        raise RowError(f"field {name!r} contains half a surrogate pair, which is not text")
    if not empty and not text.strip():
        raise RowError(f"field {name!r} is empty")
    return text


def _parse_chat(value: dict[str, Any], shape: str, file: str, line: int, name: str) -> Row:
    role_key, text_key = ("role", "content") if shape == "messages" else ("from", "value")
    turns = value.get(shape)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"field {shape!r} must be a non-empty list")
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowError(f"{shape}[{number}] must be an object")
        if turn.get("tool_calls"):
            raise RowError(f"{shape}[{number}] has tool calls, which cannot be rendered yet")
        role = turn.get(role_key)
        if shape == "conversations":
            role = _SHAREGPT_ROLES.get(str(role))
        if not isinstance(role, str):
            raise RowError(f"{shape}[{number}] has no valid {role_key!r}")
        try:
            messages.append({"role": role, "content": _text(turn, text_key, empty=True)})
        except RowError as error:
            raise RowError(f"{shape}[{number}]: {error}") from None
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError("the conversation has no assistant turn to learn from")
    last = answers[-1]
    prompt = "\n".join(m["content"] for m in messages[:last] if m["role"] != "system")
    return Row(file, line, name, prompt, messages[last]["content"], tuple(messages))
