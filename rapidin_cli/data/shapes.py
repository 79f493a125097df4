"""The shapes of training rows: which one a row has, and what it says.

The fields are those of TRL, LLaMA-Factory, axolotl, ms-swift, unsloth, OpenAI and Mistral. One
that a trainer reads and a shape does not is refused by name, never dropped in silence.
"""

from string import Formatter
from typing import Any

from rapidin_cli.data.files import RowError
from rapidin_cli.data.prepared import TOKEN_FIELDS, parse_parts, parse_tokens
from rapidin_cli.data.rows import DataSettings, Extras, Message, Row, text_of
from rapidin_cli.data.turns import (
    last_answer,
    read_history,
    read_tools,
    read_turns,
    shown,
    with_system,
)

_PREFERENCE = "preference"
_CHOICES = ("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
# What some trainer reads beside the text itself.
_MODIFIERS = (
    *("system", "history", "tools", "functions", "chat_template_kwargs"),
    *("images", "image", "videos", "video", "audios", "audio"),
    *TOKEN_FIELDS,
)
_CHAT_EXTRAS = ("system", "tools", "chat_template_kwargs")
_READ = {
    "prompt": ("system", "history", "tools", "chat_template_kwargs"),
    "alpaca": ("system", "history", "tools", "chat_template_kwargs"),
    "completion": _CHAT_EXTRAS,
    "messages": _CHAT_EXTRAS,
    "conversations": _CHAT_EXTRAS,
    "text": (),
    "segments": (),
    "tokens": TOKEN_FIELDS,
}


def fitting_formats(value: Any, settings: DataSettings) -> list[str]:
    """Return the shapes that a row may have, the likeliest first."""
    if not isinstance(value, dict):
        return []
    if _choices(value, settings):
        return [_PREFERENCE]
    prompted = settings.prompt_field in value
    fits = {
        "tokens": isinstance(value.get("input_ids"), list),
        "messages": isinstance(value.get("messages"), list),
        "conversations": isinstance(value.get("conversations"), list),
        "segments": isinstance(value.get("segments"), list),
        "alpaca": "instruction" in value and "output" in value,
        "prompt": prompted and settings.response_field in value,
        "completion": prompted and "completion" in value,
        "text": settings.text_field in value,
    }
    return [shape for shape, fit in fits.items() if fit]


def guess_format(value: Any, settings: DataSettings) -> str | None:
    """Guess the format from a row's fields; None if they match none."""
    return next(iter(fitting_formats(value, settings)), None)


def _choices(value: dict[str, Any], settings: DataSettings) -> list[str]:
    """The fields that make a row one of preference training."""
    names = [name for name in _CHOICES if value.get(name) not in _NOTHING]
    # KTO's label is true or false; a topic is no preference.
    names += ["label"] if isinstance(value.get("label"), bool) else []
    return [name for name in names if name not in settings.ignore_fields]


def unknown_shape(value: Any, settings: DataSettings) -> str:
    """Say why a row has none of the shapes."""
    if not isinstance(value, dict):
        return f"a row must be a JSON object, not {type(value).__name__}"
    fields = ", ".join(map(repr, list(value)[:6])) or "no fields"
    prompt, response = settings.prompt_field, settings.response_field
    return (
        f"unknown shape ({fields}): expected messages, conversations, instruction/output, "
        f"{prompt}/{response}, {prompt}/completion, {settings.text_field}, segments or input_ids; "
        "[data] prompt_field, response_field and text_field name other fields"
    )


def parse_row(value: Any, shape: str, settings: DataSettings, file: str, line: int) -> Row:
    """Check one row's fields and return it.

    Of packed tokens, the whole pack; `unpacked` takes it apart.

    Raises:
        RowError: a field is missing, empty or of the wrong type, or not one that rin follows.
    """
    if not isinstance(value, dict):
        raise RowError(unknown_shape(value, settings))
    identity = value.get(settings.id_field)
    name = f"{file}:{line}" if identity in (None, "") else str(identity)
    if _broken(name):
        raise RowError(f"field {settings.id_field!r} contains half a surrogate pair")
    _refuse_unread(value, shape, settings)
    parts = _PARSERS[shape](value, settings)
    return Row(file, line, name, *parts)


Parts = tuple[str, str, tuple[Message, ...] | None, dict[str, str], dict[str, Any]]


def _broken(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _refuse_unread(value: dict[str, Any], shape: str, settings: DataSettings) -> None:
    """Raise RowError for a field that a trainer reads and this shape does not."""
    if preferred := _choices(value, settings):
        raise RowError(
            f"{', '.join(map(repr, preferred))}: a row of preference training (DPO, KTO and their "
            "kin), whose loss rin cannot explain yet; if training was supervised and did not read "
            f"it: [data] ignore_fields = {_listed(preferred)}"
        )
    passed = {*_READ[shape], settings.prompt_field, settings.response_field, settings.text_field}
    unread = [
        name
        for name in _MODIFIERS
        if value.get(name) not in _NOTHING
        and name not in passed
        and name not in settings.ignore_fields
    ]
    if unread:
        raise RowError(
            f"{', '.join(map(repr, unread))}: some trainers read it, and rin does not in rows of "
            f"the shape {shape}; if training did not: [data] ignore_fields = {_listed(unread)}"
        )


def _listed(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _extra(value: dict[str, Any], name: str, settings: DataSettings) -> Any:
    return None if name in settings.ignore_fields else value.get(name)


def _chat_extras(value: dict[str, Any], settings: DataSettings, *, wrap: bool) -> dict[str, Any]:
    """The tools and other arguments of a row for its chat template."""
    extras: dict[str, Any] = {}
    if tools := read_tools(_extra(value, "tools", settings), wrap=wrap):
        extras[Extras.TOOLS] = tools
    options = _extra(value, "chat_template_kwargs", settings)
    if options not in (None, {}):
        if not isinstance(options, dict):
            raise RowError("field 'chat_template_kwargs' must be an object")
        extras[Extras.OPTIONS] = {k: v for k, v in options.items() if v is not None}
    return extras


def _parse_prompt(value: dict[str, Any], settings: DataSettings) -> Parts:
    prompt = text_of(value, settings.prompt_field, empty=True)
    response = text_of(value, settings.response_field)
    fields = {"prompt": prompt}
    for name in _named(settings.template) - {"prompt"}:
        if isinstance(value.get(name), str):  # the template complains of others
            fields[name] = text_of(value, name, empty=True)
    return _answered(value, settings, prompt, response, fields)


def _parse_alpaca(value: dict[str, Any], settings: DataSettings) -> Parts:
    instruction = text_of(value, "instruction")
    extra = text_of(value, "input", empty=True) if value.get("input") is not None else ""
    prompt = f"{instruction}\n{extra}" if extra else instruction
    fields = {"instruction": instruction, "input": extra, "prompt": prompt}
    return _answered(value, settings, prompt, text_of(value, "output"), fields)


def _answered(
    value: dict[str, Any],
    settings: DataSettings,
    prompt: str,
    response: str,
    fields: dict[str, str],
) -> Parts:
    """A prompt with its response; with `system`, `history` or `tools`, a conversation."""
    extras = _chat_extras(value, settings, wrap=True)
    turns = read_history(_extra(value, "history", settings))
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    turns, _ = with_system(turns, _extra(value, "system", settings))
    if len(turns) == 2 and not extras:
        return prompt, response, None, fields, {}
    if not settings.chat:
        asked = [n for n in ("system", "history", "tools", "chat_template_kwargs") if value.get(n)]
        raise RowError(
            f'{", ".join(map(repr, asked))} needs [data] template = "chat"; if training did not '
            f"read it: [data] ignore_fields = {_listed(asked)}"
        )
    return prompt, response, tuple(turns), fields, extras


def _parse_completion(value: dict[str, Any], settings: DataSettings) -> Parts:
    """TRL's prompt and completion: texts that are joined, or two parts of a conversation."""
    name = settings.prompt_field
    if isinstance(value.get(name), str):
        prompt, response = text_of(value, name, empty=True), text_of(value, "completion")
        return prompt, response, None, {"prompt": prompt}, {Extras.AFTER: True}
    context, _ = read_turns(value.get(name), name, settings.ignore_fields)
    answer, silent = read_turns(value.get("completion"), "completion", settings.ignore_fields)
    if silent:
        raise RowError("a completion whose turns are not learnt has nothing to learn")
    extras = _chat_extras(value, settings, wrap=False)
    turns, _ = with_system([*context, *answer], _extra(value, "system", settings))
    extras[Extras.CONTEXT] = len(turns) - len(answer)
    response = "\n".join(map(shown, answer))
    return _asked(turns[: -len(answer)]), response, tuple(turns), {}, extras


def _parse_chat(value: dict[str, Any], settings: DataSettings, name: str) -> Parts:
    turns, silent = read_turns(value.get(name), name, settings.ignore_fields)
    turns, added = with_system(turns, _extra(value, "system", settings))
    extras = _chat_extras(value, settings, wrap=name == "conversations")
    last = last_answer(turns)
    if silent:
        if settings.learn == "all":
            raise RowError(
                f'{name}[{silent[0]}] says that it is not learnt, but [data] learn = "all"; if '
                'training learnt it all the same: [data] ignore_fields = ["weight", "train", '
                '"training", "loss"]'
            )
        extras[Extras.SILENT] = [number + added for number in silent]
    return _asked(turns[:last]), shown(turns[last]), tuple(turns), {}, extras


def _asked(turns: list[Message]) -> str:
    return "\n".join(shown(turn) for turn in turns if turn["role"] != "system")


def _parse_text(value: dict[str, Any], settings: DataSettings) -> Parts:
    return "", text_of(value, settings.text_field), None, {}, {}


def _named(template: str) -> set[str]:
    """Return the fields that a template of one's own names."""
    if "{" not in template or "{%" in template:
        return set()
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name}
    except ValueError:
        return set()  # filling it in says why


_PARSERS = {
    "prompt": _parse_prompt,
    "completion": _parse_completion,
    "alpaca": _parse_alpaca,
    "messages": lambda value, settings: _parse_chat(value, settings, "messages"),
    "conversations": lambda value, settings: _parse_chat(value, settings, "conversations"),
    "text": _parse_text,
    "segments": parse_parts,
    "tokens": parse_tokens,
    _PREFERENCE: _parse_text,  # `_refuse_unread` says no
}
