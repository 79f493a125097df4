"""The next command, ready to be typed as it is printed."""

import shlex
from collections.abc import Sequence
from itertools import islice

from rapidin_cli.api import Project
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import Row
from rapidin_cli.errors import InputError

_ROWS = 100
_LONGEST = 80
OWN_WORDS = "or in your own words: rin retrieve --prompt TEXT --response TEXT"


def first_question(project: Project, cached: Sequence[str] = ()) -> str:
    """Return a `rin retrieve` that works here: about a prompt of the data, or a row of it.

    Args:
        cached: the checkpoints that can be asked; all by default.
    """
    command = ["rin", "retrieve", *_about(project)]
    names = [checkpoint.name for checkpoint in project.config.checkpoints]
    if cached and names[-1] not in cached:
        command += ["--checkpoint", cached[-1]]
    return shlex.join(command)


def _about(project: Project) -> list[str]:
    try:
        found = islice(read_rows(project.root, project.config.data), _ROWS)
        rows = [row for row in found if isinstance(row, Row)]
    except InputError:
        rows = []
    for row in rows:
        if _can_be_typed(row):
            return ["--prompt", row.prompt, "--generate"]
    if rows and rows[0].id.isprintable():
        return ["--row", rows[0].id]
    return ["--prompt", "TEXT", "--response", "TEXT"]


def _can_be_typed(row: Row) -> bool:
    """Whether a prompt is one short line, and the whole of what the model was told."""
    one_turn = row.messages is None or [m["role"] for m in row.messages[:2]] == [
        "user", "assistant",
    ]  # fmt: skip
    text = row.prompt
    # A dash would begin an option.
    short = 0 < len(text) <= _LONGEST and text.isprintable() and not text.startswith("-")
    return one_turn and short and bool(text.strip())
