"""`rin remote`: where a team shares its caches."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import arg, opt, project_of
from rapidin_cli.commands.options import AsJson
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Name = Annotated[str, arg("NAME", "What to call it, such as origin.")]
Url = Annotated[str, arg("URL", "s3://BUCKET/PREFIX, any fsspec URL, or a folder.")]
Known = Annotated[str, arg("REMOTE", "A remote of rin.toml.")]
Endpoint = Annotated[str, opt("URL", "Endpoint of an S3 service that is not AWS.")]
Profile = Annotated[str, opt("NAME", "Profile in the AWS config files.")]
Region = Annotated[str, opt("NAME", "Region of the bucket.")]


def add(
    context: typer.Context,
    name: Name,
    url: Url,
    endpoint_url: Endpoint = "",
    profile: Profile = "",
    region: Region = "",
) -> None:
    """Add a remote to rin.toml. Credentials come from the AWS chain, never from rin.toml.

    Examples:
        rin remote add origin s3://my-bucket/rin
    """
    from rapidin_cli.workspace import remotes
    from rapidin_cli.workspace.config import RemoteSettings

    project = project_of(context)
    settings = RemoteSettings(url, endpoint_url, profile, region)
    remotes.add_remote(project.root, project.config, name, settings)
    console.say(f"added remote {name}: {url}; commit rin.toml")
    console.say("next: rin doctor")


def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the remotes of rin.toml.

    Examples:
        rin remote list
    """
    from dataclasses import asdict

    known = project_of(context).config.remote
    if as_json:
        found = {name: asdict(settings) for name, settings in known.items()}
        console.as_json({"schema": "rin.remotes/1", "remotes": found})
        return
    for name, settings in known.items():
        console.raw(visible(f"{name}  {settings.url}"))
    if not known:
        console.say("there are no remotes yet")
        console.say("next: rin remote add origin s3://BUCKET/PREFIX")


def remove(context: typer.Context, name: Known) -> None:
    """Remove a remote from rin.toml. What it holds is kept.

    Examples:
        rin remote remove origin
    """
    from rapidin_cli.workspace import remotes

    project = project_of(context)
    remotes.remove_remote(project.root, project.config, name)
    console.say(f"removed remote {name} from rin.toml; what it holds is kept")
