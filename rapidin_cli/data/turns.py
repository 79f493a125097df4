"""The turns of a conversation: roles, tool calls, and which of them training learnt."""

import json
from collections.abc import Sequence
from typing import Any

from rapidin_cli.data.files import RowError
from rapidin_cli.data.rows import HALF_PAIR, Message, text_of

# ShareGPT's names, and those that axolotl and LLaMA-Factory take for the same.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
# Whether a turn is learnt: OpenAI and Mistral, axolotl (twice), ms-swift.
_FLAGS = ("weight", "train", "training", "loss")
_DETAILS = ("train_detail", "training_detail")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def read_turns(
    turns: Any, where: str, ignored: Sequence[str] = ()
) -> tuple[list[Message], list[int]]:
    """Check the turns of a conversation; return messages, and the numbers of those not learnt.

    Turns name their parts `role` and `content`, or `from` and `value`. What else they hold goes
    to the chat template as it is; `ignored` fields do not.

    Raises:
        RowError: a turn is broken, or says what rin cannot follow.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError(f"field {where!r} must be a non-empty list")
    messages, silent = [], []
    for number, turn in enumerate(turns):
        try:
            message, learnt = _read_turn(turn, ignored)
        except RowError as error:
            raise RowError(f"{where}[{number}]: {error}") from None
        messages.append(message)
        if not learnt:
            silent.append(number)
    return messages, silent


def _read_turn(turn: Any, ignored: Sequence[str]) -> tuple[Message, bool]:
    if not isinstance(turn, dict):
        raise RowError("a turn must be an object")
    turn = {key: value for key, value in turn.items() if key not in ignored}
    shared = "from" in turn and "role" not in turn
    role_key, text_key = ("from", "value") if shared else ("role", "content")
    named = turn.get(role_key)
    role = _ROLES.get(str(named)) if shared else named
    if not isinstance(role, str) or not role:
        raise RowError(f"no valid {role_key!r}")
    rest = {
        key: value
        for key, value in turn.items()
        if value is not None and key not in (role_key, text_key, *_FLAGS)
    }
    for key in (*_DETAILS, *_MEDIA, "function_call"):
        if rest.get(key):
            raise RowError(f"rin cannot follow {key!r}: it explains whole turns of text")
    message: Message = {"role": role, "content": _content(turn, text_key, rest), **rest}
    if named == "function_call":
        message.update(content="", tool_calls=_calls(message["content"]))
    return message, _learnt(turn)


def _content(turn: dict[str, Any], key: str, rest: dict[str, Any]) -> str | None:
    """The text of a turn; a list of text parts is joined, as chat templates join it."""
    value = turn.get(key)
    if value is None and rest.get("tool_calls"):
        return None
    if not isinstance(value, list):
        return text_of(turn, key, empty=True)
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise RowError(f"{key!r} has a part of type {kind!r}: rin explains text only")
    return "".join(text_of(part, "text", empty=True) for part in value)


def _calls(text: Any) -> list[dict[str, Any]]:
    """The calls of a ShareGPT turn `function_call`: one, or a list of them, as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        raise RowError("a function_call must be JSON") from None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError("a function_call must have a 'name'")
    return [{"type": "function", "function": call} for call in calls]


def _learnt(turn: dict[str, Any]) -> bool:
    """Whether the turn itself allows that it is learnt."""
    learnt = True
    for key in _FLAGS:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True and False are
            raise RowError(f"{key} {value!r}: rin takes a turn as learnt (1) or not (0)")
        learnt = learnt and bool(value)
    return learnt


def read_tools(value: Any, *, wrap: bool) -> list[Any] | None:
    """Return the tools that a row describes, as a list or as JSON text; None without any.

    Args:
        wrap: bare descriptions become {"type": "function", "function": ...}, as LLaMA-Factory
            has them.

    Raises:
        RowError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise RowError("field 'tools' is not JSON") from None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("field 'tools' must be a list of objects, or JSON of one")
    if not wrap:
        return value
    bare = {"type": "function"}
    return [tool if "function" in tool else {**bare, "function": tool} for tool in value]


def with_system(messages: list[Message], system: Any) -> tuple[list[Message], int]:
    """Put a row's `system` text first; return the messages and how many were added.

    Raises:
        RowError: the conversation begins with another one.
    """
    if system in (None, ""):
        return messages, 0
    if not isinstance(system, str) or HALF_PAIR.search(system):
        raise RowError("field 'system' must be text")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages], 1
    if messages[0]["content"] != system:
        raise RowError("field 'system' and the conversation's own system turn differ")
    return messages, 0


def read_history(value: Any) -> list[Message]:
    """Return the earlier turns of a row: pairs of prompt and response.

    Raises:
        RowError: they are no pairs of text.
    """
    messages: list[Message] = []
    for pair in value or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("field 'history' must be a list of [prompt, response]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not isinstance(text, str) or HALF_PAIR.search(text):
                raise RowError("field 'history' must hold text")
            messages.append({"role": role, "content": text})
    return messages


def shown(message: Message) -> str:
    """Return what a turn says, for people: its text, or the tools that it calls."""
    text = str(message.get("content") or "")
    calls = message.get("tool_calls")
    return f"{text}\n{json.dumps(calls, ensure_ascii=False)}".strip() if calls else text


def last_answer(messages: Sequence[Message]) -> int:
    """Return the number of the last assistant turn.

    Raises:
        RowError: there is none.
    """
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError("the conversation has no assistant turn to learn from")
    return answers[-1]
