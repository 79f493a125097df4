"""How commands and their options are written: help in paragraphs, examples, values by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from rapidin_cli.commands import completion

if TYPE_CHECKING:
    from rapidin_cli.api import Project

# What the shell completes, by the name of the value.
_COMPLETED: dict[str, Callable[..., list[str]]] = {
    "CHECKPOINT": completion.checkpoints,
    "BEFORE": completion.checkpoints,
    "AFTER": completion.checkpoints,
    "CHECKPOINT[,...]": completion.several_checkpoints,
    "RESULT": completion.results,
    "RESULT[:QUERY]": completion.results,
    "REMOTE": completion.remotes,
    "PLACE": completion.remotes,
    "SCORE": completion.scores,
}


def opt(value: str, told: str, *names: str, **more: Any) -> Any:
    """An option with a value.

    Args:
        value: what stands for it in help, such as FILE; some are completed by the shell.
        told: the help.
        names: of the option, if not the parameter's.
    """
    completed = _COMPLETED.get(value)
    return typer.Option(*names, metavar=value, help=told, autocompletion=completed, **more)


def switch(told: str, *names: str) -> Any:
    """An option without a value."""
    return typer.Option(*names, metavar="", help=told)


def arg(value: str, told: str, **more: Any) -> Any:
    """An argument; see `opt`."""
    completed = _COMPLETED.get(value)
    return typer.Argument(metavar=value, help=told, autocompletion=completed, **more)


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A command with commands below it."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its options, `--help` too."""
        return _without_types(super().get_params(ctx))


def _without_types(params: list[Any]) -> list[Any]:
    """Typer's own switches, such as `--help`, would be shown as `<bool>`."""
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            param.metavar = ""
    return params


def project_of(context: typer.Context, store: str = "") -> Project:
    """Open the project of the folder that a command works in; see `Project.open`."""
    from rapidin_cli.api import Project

    return Project.open(context.obj.directory, store)


def add(app: typer.Typer, group: str | None, commands: Sequence[Callable[..., None]]) -> None:
    """Add commands under a heading, each by its function's name.

    The docstring is the help: its first paragraphs, in which line breaks do not count, and then
    `Examples:`, lines to type.
    """
    for function in commands:
        told, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
        app.command(
            name=function.__name__.rstrip("_"),
            cls=_Command,
            help="\n\n".join(" ".join(part.split()) for part in told.split("\n\n")),
            epilog=f"Examples:\n{examples}",
            rich_help_panel=group,
        )(function)


def add_group(
    app: typer.Typer, group: str, name: str, told: str, commands: Sequence[Callable[..., None]]
) -> None:
    """Add a command with commands below it."""
    inner = typer.Typer(cls=Group, no_args_is_help=True, help=told)
    add(inner, None, commands)
    app.add_typer(inner, name=name, rich_help_panel=group)
