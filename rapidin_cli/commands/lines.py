"""`rin retrieve -`: a question a line in, its answer out, by checkpoints that stay loaded."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from rapidin_cli.errors import ExitCode, InputError, RinError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.workspace.asking import Session

_NAME = "stdin"
_ERROR = "rin.error/1"
_HINT = 'one per line: {"prompt": "...", "response": "..."}'


def answer_lines(
    project: Project,
    session: Callable[[], Session],
    options: Options,
    narrow: Callable[[list[Question]], list[Question]],
    *,
    generate: bool,
    as_json: bool,
) -> None:
    """Answer each line of stdin before the next one is read.

    A line that cannot be answered is told, on stdout too where that is JSON, and the next one is
    taken.

    Args:
        session: loads the checkpoints, once there is a question.
        narrow: applies the options of the command to a question.

    Raises:
        InputError: stdin has no line, or lines could not be answered, once all were read.
    """
    from rapidin_cli.influence.queries import read_question

    loaded: Session | None = None
    read = failed = 0
    for line, value in _values():
        read += 1
        try:
            question = read_question(value, project.config.data, _NAME, line, generate=generate)
            with console.counting("loading model and cache") as progress:
                loaded = loaded or session()
                report = loaded.retrieve(
                    narrow([question]),
                    options,
                    command=shlex.join(["rin", *sys.argv[1:]]),
                    progress=progress,
                )
        except RinError as error:
            failed += 1
            _tell(line, error, as_json=as_json)
            continue
        _show(report, as_json=as_json)
        warn_unsaved(project)
        if report["interrupted"]:
            raise typer.Exit(ExitCode.INTERRUPTED)
    if not read:
        raise InputError(f"{_NAME} has no queries", hint=_HINT)
    if failed:
        raise InputError(
            f"{console.count(failed, 'line')} of {_NAME} could not be answered (of {read:,})",
            hint="correct them, and ask again",
        )


def warn_unsaved(project: Project) -> None:
    """Say that a result was not saved, if it was not."""
    if project.results.unsaved:
        console.warn(f"not saved, so rin report cannot show it again: {project.results.unsaved}")


def _values() -> Iterator[tuple[int, Any]]:
    """Yield (line, value) as lines come; of a broken one, what is wrong with it."""
    from rapidin_cli.data.files import RowError

    # A line at a time, from whatever stdin is: a file, a pipe, a socket, a terminal.
    try:
        lines = open(0, "rb", closefd=False)  # noqa: SIM115 (not ours to close)
    except OSError as error:
        raise InputError(f"cannot read {_NAME}: {error.strerror}", hint=_HINT) from None
    for line, text in enumerate(iter(lines.readline, b""), 1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text)
        except UnicodeDecodeError:
            yield line, RowError("not UTF-8 text")
        except (json.JSONDecodeError, RecursionError) as error:
            yield line, RowError(f"not JSON: {error}")


def _tell(line: int, error: RinError, *, as_json: bool) -> None:
    console.error(error)
    if as_json:
        told = {"schema": _ERROR, "line": line, "error": error.message, "next": error.hint}
        console.raw(json.dumps(told))


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    from rapidin_cli.report import terminal

    if as_json:
        console.raw(json.dumps(report, allow_nan=False))
    else:
        terminal.show(report)
