"""`rin remote`: where a team shares its caches."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.commands.adding import SHARE, add, add_group
from rapidin_cli.commands.options import AsJson
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Name = Annotated[str, typer.Argument(metavar="NAME", help="What to call it, such as origin.")]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="s3://BUCKET/PREFIX, any fsspec URL, or a folder."),
]
Known = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A remote of rin.toml.", autocompletion=completion.remotes),
]
Endpoint = Annotated[
    str, typer.Option(metavar="URL", help="Endpoint of an S3 service that is not AWS.")
]
Profile = Annotated[str, typer.Option(metavar="NAME", help="Profile in the AWS config files.")]
Region = Annotated[str, typer.Option(metavar="NAME", help="Region of the bucket.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = add_group(
        app, "remote", "List, add and remove the places where caches are shared.", SHARE
    )
    add(group, "add", add_remote, None, "rin remote add origin s3://my-bucket/rin")
    add(group, "list", list_remotes, None, "rin remote list")
    add(group, "remove", remove_remote, None, "rin remote remove origin")


def add_remote(
    context: typer.Context,
    name: Name,
    url: Url,
    endpoint_url: Endpoint = "",
    profile: Profile = "",
    region: Region = "",
) -> None:
    """Add a remote to rin.toml. Credentials come from the AWS chain, never from rin.toml."""
    from rapidin_cli.api import Project
    from rapidin_cli.workspace import remotes
    from rapidin_cli.workspace.config import RemoteSettings

    project = Project.open(context.obj.directory)
    settings = RemoteSettings(url, endpoint_url, profile, region)
    remotes.add_remote(project.root, project.config, name, settings)
    console.say(f"added remote {name}: {url}; commit rin.toml")
    console.say("next: rin doctor")


def list_remotes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the remotes of rin.toml."""
    from dataclasses import asdict

    from rapidin_cli.api import Project

    known = Project.open(context.obj.directory).config.remote
    if as_json:
        found = {name: asdict(settings) for name, settings in known.items()}
        console.as_json({"schema": "rin.remotes/1", "remotes": found})
        return
    for name, settings in known.items():
        console.raw(visible(f"{name}  {settings.url}"))
    if not known:
        console.say("there is no remote yet")
        console.say("next: rin remote add origin s3://BUCKET/PREFIX")


def remove_remote(context: typer.Context, name: Known) -> None:
    """Remove a remote from rin.toml. What it holds is kept."""
    from rapidin_cli.api import Project
    from rapidin_cli.workspace import remotes

    project = Project.open(context.obj.directory)
    remotes.remove_remote(project.root, project.config, name)
    console.say(f"removed remote {name} from rin.toml; what it holds stays")
