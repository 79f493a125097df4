"""`rin remote`: where a team shares its caches."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Say where caches are shared.")
    group.command(name="add")(add)
    group.command(name="list")(list_)
    group.command(name="remove")(remove)
    app.add_typer(group, name="remote")


def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it, such as origin.")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX, any fsspec URL, or a folder.")],
    endpoint_url: Annotated[str, typer.Option(help="An S3 service that is not AWS.")] = "",
    profile: Annotated[str, typer.Option(help="Profile of the AWS files.")] = "",
    region: Annotated[str, typer.Option(help="Region of the bucket.")] = "",
) -> None:
    """Add a remote to rin.toml. Credentials come from the AWS chain, never from rin.toml."""
    from rapidin_cli.api import Project
    from rapidin_cli.workspace.config import RemoteSettings
    from rapidin_cli.workspace.remotes import add_remote

    project = Project.open(context.obj.directory)
    settings = RemoteSettings(url, endpoint_url, profile, region)
    add_remote(project.root, project.config, name, settings)
    console.say(f"added remote {name}: {url}; commit rin.toml")
    console.say("next: rin doctor")


def list_(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List the remotes of rin.toml."""
    from dataclasses import asdict

    from rapidin_cli.api import Project

    remotes = Project.open(context.obj.directory).config.remote
    if as_json:
        found = {name: asdict(settings) for name, settings in remotes.items()}
        console.as_json({"schema": "rin.remotes/1", "remotes": found})
        return
    for name, settings in remotes.items():
        console.raw(visible(f"{name}  {settings.url}"))
    if not remotes:
        console.say("there is no remote yet")
        console.say("next: rin remote add origin s3://BUCKET/PREFIX")


def remove(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A remote of rin.toml.", autocompletion=completion.remotes)
    ],
) -> None:
    """Take a remote out of rin.toml; what it holds stays."""
    from rapidin_cli.api import Project
    from rapidin_cli.workspace.remotes import remove_remote

    project = Project.open(context.obj.directory)
    remove_remote(project.root, project.config, name)
    console.say(f"removed remote {name} from rin.toml; what it holds stays")
