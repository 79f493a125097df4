"""What a training row is before it is tokens, and the settings that decide how it is read."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from rapidin_cli.data.files import RowError

Message = dict[str, Any]
Learn = Literal["assistant", "last", "all"]
Cut = Literal["right", "left", "drop"]
Join = Literal["text", "tokens"]
Format = Literal[
    "auto",
    "prompt",
    "completion",
    "alpaca",
    "messages",
    "conversations",
    "text",
    "segments",
    "tokens",
]

HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class DataSettings:
    """The `[data]` table of rin.toml.

    Attributes:
        files: JSONL, JSON lists, CSV, Parquet or datasets folders, relative to the project.
        format: the shape of the rows, see `shapes`; `auto` goes by the fields of a file's first.
        template: how prompt and response become one text: `chat` (the tokenizer's chat
            template), a file `NAME.jinja` with another chat template, `alpaca`, `plain`
            (joined as they are), or a text of your own that ends where the response begins
            and names fields of the row, such as `{prompt}`.
        join: what was joined: the `text` of prompt and response, which was then tokenised as one
            (TRL), or the `tokens` of each (LLaMA-Factory, axolotl's alpaca).
        learn: what training learnt of a row: `assistant` (the response, every assistant turn),
            `last` (the last one of them), `all` (every token, the prompt's as well).
        prompt_field, response_field, text_field, id_field: names of the row's fields.
        max_tokens: longer rows are cut there, as in training.
        cut: how: `right` keeps their beginning, `left` their end, `drop` leaves them out.
        append_eos: whether training ended every response with the EOS token (chat
            templates end turns themselves).
        ignore_fields: fields that trainers read, and that this training did not.
        date: the day of training, YYYY-MM-DD, for chat templates that write the date.
    """

    files: tuple[str, ...] = ()
    format: Format = "auto"
    template: str = "plain"
    join: Join = "text"
    learn: Learn = "assistant"
    prompt_field: str = "prompt"
    response_field: str = "response"
    text_field: str = "text"
    id_field: str = "id"
    max_tokens: int = 1024
    cut: Cut = "right"
    append_eos: bool = True
    ignore_fields: tuple[str, ...] = ()
    date: str = ""

    @property
    def chat(self) -> bool:
        """Whether a chat template renders prompt and response."""
        return self.template == "chat" or self.jinja is not None

    @property
    def jinja(self) -> str | None:
        """The chat template in place of the tokenizer's, if the settings hold one."""
        return self.template if "{%" in self.template else None

    def rendering(self) -> dict[str, Any]:
        """What decides the text of a row: part of the tokenizer fingerprint."""
        return {"template": self.template, "append_eos": self.append_eos, "date": self.date}


@dataclass(frozen=True)
class Row:
    """One row before tokenisation.

    Attributes:
        file, line: where it is, for messages.
        id: from the row, or `file:line`.
        prompt, response: to show; `response` is the last assistant turn of a chat.
        messages: the turns of a chat row, else None.
        fields: what a template may name.
        extras: what else decides its tokens, see `Extras`.
    """

    file: str
    line: int
    id: str
    prompt: str
    response: str
    messages: tuple[Message, ...] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


class Extras:
    """Keys of `Row.extras`; the values are JSON.

    TOOLS: descriptions of tools for the chat template. OPTIONS: its other arguments.
    SILENT: numbers of assistant turns that were not learnt. CONTEXT: how many of the messages
    are the prompt; all that follows them is learnt. AFTER: whatever follows the tokens of the
    prompt is learnt. PARTS: texts, each with whether it is learnt, tokenised one by one.
    TOKENS: [input_ids, labels], as training made them; LENGTHS: of the sequences of a pack.
    """

    TOOLS = "tools"
    OPTIONS = "options"
    SILENT = "silent"
    CONTEXT = "context"
    AFTER = "after"
    PARTS = "parts"
    TOKENS = "tokens"
    LENGTHS = "lengths"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where and why.

    Attributes:
        dropped: training left it out as well, so it stops nothing.
    """

    file: str
    line: int
    reason: str
    dropped: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def text_of(value: dict[str, Any], name: str, *, empty: bool = False) -> str:
    """Return a field that must be text, and unless it may be `empty`, must say something.

    Raises:
        RowError: it is not.
    """
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
