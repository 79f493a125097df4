"""How a command is added: its group, its help in paragraphs, its examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

START, ASK, ACT, SHARE, MAINTAIN = "Start", "Ask", "Act", "Share", "Maintain"

# What stands behind an option for its value; nothing behind a switch.
_VALUES = {bool: "", str: "TEXT", list[str]: "TEXT", int: "N", float: "X", Path: "PATH"}


def _named_values(params: list[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            flag = getattr(param, "is_flag", False)
            kind: Any = getattr(getattr(param, "type_descriptor", None), "annotation", None)
            param.metavar = "" if flag else _VALUES.get(kind)
    return params


class Command(TyperCommand):
    """A command whose help names values as people write them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options, `--help` too."""
        return _named_values(super().get_params(ctx))


class Group(TyperGroup):
    """The same for a command with commands below it; they are listed as they were added."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options, `--help` too."""
        return _named_values(super().get_params(ctx))


def add(
    app: typer.Typer, name: str, function: Callable[..., None], group: str | None, *examples: str
) -> None:
    """Add a command.

    Args:
        function: its docstring is the help; line breaks within a paragraph do not count.
        group: the heading that it is listed under.
        examples: whole lines to type.
    """
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    shown = "\n".join(f"  {example}" for example in examples)
    app.command(
        name=name,
        cls=Command,
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        epilog=f"Examples:\n{shown}",
        rich_help_panel=group,
    )(function)


def add_group(app: typer.Typer, name: str, told: str, group: str) -> typer.Typer:
    """Add a command with commands below it, and return where to add those."""
    inner = typer.Typer(cls=Group, no_args_is_help=True, help=told)
    app.add_typer(inner, name=name, rich_help_panel=group)
    return inner
