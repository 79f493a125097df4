"""The only place that prints: data to stdout, messages to stderr, errors as one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import RinError
from rapidin_cli.output.amounts import count as count
from rapidin_cli.output.amounts import duration as duration
from rapidin_cli.output.amounts import size as size
from rapidin_cli.output.sanitise import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from rapidin_cli.output.stages import Stages

# While there is one, messages go through its console: else its bar would cut them.
_shown: Stages | None = None


def stdout() -> Console:
    """A console for data: no markup, no guessing at numbers and links."""
    return _console(stderr=False)


def stderr() -> Console:
    """A console for messages."""
    return _shown.console if _shown else _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def data(renderable: RenderableType) -> None:
    """Print what the user asked for. A reader that went away (`| head`) is not an error."""
    console = stdout()
    if not console.is_terminal:
        with console.capture() as captured:
            console.print(renderable)
        # Tables fill their columns; programs and diffs want no blanks at the ends of lines.
        raw("\n".join(line.rstrip() for line in captured.get().split("\n")))
        return
    try:
        console.print(renderable)
        sys.stdout.flush()
    except BrokenPipeError:
        _reader_gone()


def raw(text: str) -> None:
    """Print text for programs: unchanged, without wrapping."""
    stdout()  # for an encoding that lacks some of it
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _reader_gone()


def as_json(value: Any) -> None:
    """Print JSON for programs."""
    raw(json.dumps(value, allow_nan=False, indent=1))


def _reader_gone() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def say(text: str) -> None:
    """Print a message on stderr."""
    stderr().print(visible(text), soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """Print something for people on stderr."""
    stderr().print(renderable, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    stderr().print(f"warning: {visible(text)}", style="yellow", soft_wrap=True)


def error(problem: RinError) -> None:
    """Print what went wrong and what to do next."""
    console = stderr()
    console.print(f"error: {visible(problem.message)}", style="bold red", soft_wrap=True)
    if problem.hint:
        console.print(f"next:  {visible(problem.hint)}", soft_wrap=True)


@contextmanager
def stages() -> Iterator[Stages]:
    """Show the stages of long work on stderr; messages meanwhile go above the bar."""
    from rapidin_cli.output.stages import Stages

    global _shown
    if _shown is not None:  # one line is enough for all
        yield _shown
        return
    try:
        with Stages(stderr()) as _shown:
            yield _shown
    finally:
        _shown = None


@contextmanager
def counting(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show work that reports (what, done, all): another `what` is another stage.

    Args:
        first: what is done until the first report.
    """
    with stages() as shown:
        shown(first)
        yield shown


def confirm(question: str, *, default: bool) -> bool:
    """Ask yes or no; return the default where nobody can answer."""
    if sys.stdin is None or not sys.stdin.isatty():
        return default
    try:
        answer = stderr().input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
    except EOFError:
        return False
    return default if not answer else answer.startswith("y")
