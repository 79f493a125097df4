"""Remotes: `[remote.NAME]` in rin.toml, opened, added and removed."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.output.files import write_whole
from rapidin_cli.workspace.config import (
    CONFIG_FILE,
    LOCAL_CONFIG,
    REMOTE_NAME,
    Config,
    RemoteSettings,
)
from rapidin_storage import Root, open_root

_S3 = ("s3://", "s3a://")
_S3_SETTINGS = ("endpoint_url", "profile", "region")


def open_place(place: str, config: Config, folder: Path) -> Root:
    """Open the name of a remote, an fsspec URL, or a folder relative to the project.

    Raises:
        InputError: no filesystem for that URL is installed, or the name is neither a remote nor
            a folder.
    """
    if place in config.remote:
        return open_remote(place, config.remote[place], folder)
    known = [name for name, remote in config.remote.items() if _same(remote.url, place)]
    if known:
        return open_remote(known[0], config.remote[known[0]], folder)
    if "://" in place:
        _check_url(place, f"the store {place!r}")
        return _open(place, f"the store {place!r}", {})
    path = folder / Path(place).expanduser()
    if REMOTE_NAME.fullmatch(place) and not path.is_dir():
        raise InputError(
            f"{place!r} is neither a remote nor a folder",
            hint=f"rin remote add {place} URL, or use ./{place} for a new folder",
        )
    return _open(str(path), f"the store {place!r}", {})


def _same(url: str, place: str) -> bool:
    return url.rstrip("/") == place.rstrip("/")


def open_remote(name: str, settings: RemoteSettings, folder: Path) -> Root:
    """Open a remote without contacting it yet.

    Raises:
        InputError: no filesystem for its URL is installed, or a setting does not apply to it.
    """
    _check_url(settings.url, f"remote {name!r}")
    if settings.endpoint_url and not settings.endpoint_url.startswith(("http://", "https://")):
        raise InputError(
            f"{CONFIG_FILE}: [remote.{name}] endpoint_url = {settings.endpoint_url!r} must begin "
            "with http:// or https://",
            hint=f"correct {CONFIG_FILE}",
        )
    options: dict[str, Any] = {}
    if settings.url.startswith(_S3):
        options = {key: getattr(settings, key) for key in (*_S3_SETTINGS, "timeout")}
    elif used := [key for key in _S3_SETTINGS if getattr(settings, key)]:
        raise InputError(
            f"{CONFIG_FILE}: [remote.{name}] {used[0]} is for S3, but its url is {settings.url}",
            hint=f"correct {CONFIG_FILE}",
        )
    if "://" not in settings.url:
        return _open(str(folder / Path(settings.url).expanduser()), f"remote {name!r}", {})
    if not settings.url.startswith("file://"):
        options.update(name=name, single_writer=settings.single_writer)
    return _open(settings.url, f"remote {name!r}", options)


def _check_url(url: str, what: str) -> None:
    """Refuse a URL without a place, or with credentials: it is committed, and shown."""
    scheme, _, rest = url.rpartition("://")
    authority = rest.partition("/")[0]
    if scheme and ":" in authority.rpartition("@")[0]:
        raise InputError(
            f"the url of {what} contains credentials, which do not belong in {CONFIG_FILE}",
            hint="remove them; they come from the AWS chain (AWS_PROFILE, ~/.aws/credentials)",
        )
    if not rest or (url.startswith(_S3) and not authority):
        raise InputError(
            f"the url of {what} has no location: {url!r}", hint="for example s3://BUCKET/PREFIX"
        )


def _open(place: str, what: str, options: dict[str, Any]) -> Root:
    try:
        return open_root(place, **options)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{what} cannot be opened: {error}",
            hint=f"install the package that it names, or correct {CONFIG_FILE}",
        ) from None


def choose(config: Config, name: str) -> str:
    """Return the name of a remote: the one given, the only one, or `origin`.

    Raises:
        InputError: there is none of that name, or none at all.
    """
    if not config.remote:
        raise InputError(
            "this project has no remote", hint="rin remote add origin s3://BUCKET/PREFIX"
        )
    if name and name not in config.remote:
        known = ", ".join(config.remote)
        raise InputError(
            f"there is no remote {name!r} (remotes: {known})", hint=f"rin remote add {name} URL"
        )
    if name or len(config.remote) == 1:
        return name or next(iter(config.remote))
    if "origin" in config.remote:
        return "origin"
    raise UsageError(
        f"say which remote: {', '.join(config.remote)}", hint="for example: rin push NAME"
    )


def add_remote(folder: Path, config: Config, name: str, settings: RemoteSettings) -> None:
    """Append a `[remote.NAME]` table to rin.toml.

    Raises:
        UsageError: a bad name, or one already in use. InputError: its URL cannot be opened.
    """
    if not REMOTE_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a remote", hint="use letters, digits, - and _"
        )
    if name in config.remote:
        raise UsageError(
            f"remote {name!r} already exists: {config.remote[name].url}",
            hint=f"rin remote remove {name}, or use another name",
        )
    open_remote(name, settings, folder)
    given = {"url": settings.url} | {
        key: getattr(settings, key) for key in _S3_SETTINGS if getattr(settings, key)
    }
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8-sig").rstrip("\n")
    _rewrite(
        folder,
        f"{text}\n\n[remote.{name}]\n{lines}",
        {**_tables(text), "remote": {**_tables(text).get("remote", {}), name: given}},
    )


def remove_remote(folder: Path, config: Config, name: str) -> None:
    """Remove a `[remote.NAME]` table from rin.toml; the remote keeps its content.

    Raises:
        InputError: there is none of that name, or it is not written in the usual way.
    """
    choose(config, name)
    if config.storage.root == name:
        raise UsageError(
            f"remote {name!r} is this project's store",
            hint=f"change [storage] root in {CONFIG_FILE} first",
        )
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8-sig")
    pattern = rf"\n*^[ \t]*\[remote\.{re.escape(name)}\][^\n]*\n(?:(?![ \t]*\[)[^\n]*\n?)*"
    shorter = re.sub(pattern, "\n\n", text, count=1, flags=re.MULTILINE).rstrip("\n") + "\n"
    expected = _tables(text)
    if name not in expected.get("remote", {}):
        raise InputError(
            f"remote {name!r} is not in {CONFIG_FILE} but in {LOCAL_CONFIG}",
            hint=f"remove it from {LOCAL_CONFIG} by hand",
        )
    expected["remote"].pop(name)
    if not expected.get("remote"):
        expected.pop("remote", None)
    _rewrite(folder, shorter, expected)


def _tables(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def _rewrite(folder: Path, text: str, expected: dict[str, Any]) -> None:
    """Replace rin.toml, if the new text means exactly what was wanted."""
    path = folder / CONFIG_FILE
    try:
        good = _tables(text) == expected
    except tomllib.TOMLDecodeError:
        good = False
    if not good:
        raise InputError(
            f"{CONFIG_FILE} is written in a way that rin cannot change safely",
            hint=f"edit [remote] in {CONFIG_FILE} by hand",
        )
    write_whole(path, text)
