"""Reports as files: pages of limited size, written whole or not at all, for their owner only."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.output.files import write_whole
from rapidin_cli.report.html import render_html, render_page
from rapidin_cli.report.shrinking import ever_smaller
from rapidin_cli.report.tables import as_csv, as_jsonl
from rapidin_cli.report.view import dump

MEGABYTE = 10**6
# Measured in Chromium on two cores (tests/integration/test_html_report.py): 10 MB are ready in
# half a second. Browsers open 50 MB too, but mail servers and issue trackers refuse them.
ROUNDED_ABOVE, WARNED_ABOVE, REFUSED_ABOVE = 10 * MEGABYTE, 25 * MEGABYTE, 50 * MEGABYTE


@dataclass(frozen=True)
class Published:
    """What was written: the files, the one to open first; their size in bytes; a warning."""

    paths: list[Path]
    size: int
    warning: str = ""


def page_of(report: Mapping[str, Any]) -> str:
    """Return the page; scores of training tokens are rounded if it would be large."""
    page = render_html(report)
    return page if _size(page) <= ROUNDED_ABOVE else render_html(report, rounded=True)


def _size(page: str) -> int:
    return len(page.encode("utf-8"))


def publish(
    report: Mapping[str, Any],
    path: Path,
    *,
    force: bool = False,
    megabytes: float | None = None,
    split: bool = False,
) -> Published:
    """Write a report as HTML.

    Args:
        path: the file.
        force: replace files, and write even what is too large.
        megabytes: leave out the least important parts until the page is this small.
        split: write a page for each query, and a first one that lists them.

    Raises:
        InputError: a file exists, or cannot be written. UsageError: it is too large.
    """
    refuse_existing(path, force=force)
    if split:
        return _split(report, path, force=force, megabytes=megabytes)
    page = _fitted(report, megabytes)
    size = _size(page)
    if size > REFUSED_ABOVE and not force:
        raise UsageError(
            f"{path} would be {size / MEGABYTE:.0f} MB, too large for many browsers and mailboxes",
            hint="add --split (a page for each query), --shrink 25, or --force",
        )
    warning = ""
    if size > WARNED_ABOVE:
        warning = f"{path} is {size / MEGABYTE:.0f} MB: --split or --shrink 25 makes it smaller"
    return Published([path], save_page(page, path, force=force), warning)


def _fitted(report: Mapping[str, Any], megabytes: float | None) -> str:
    if megabytes is None:
        return page_of(report)
    size = 0
    for smaller in ever_smaller(report):
        page = page_of(smaller)
        size = _size(page)
        if size <= megabytes * MEGABYTE:
            return page
    raise UsageError(
        f"the report cannot be made smaller than {size / MEGABYTE:.1f} MB",
        hint="add --split, or allow more with --shrink",
    )


def _split(
    report: Mapping[str, Any], path: Path, *, force: bool, megabytes: float | None
) -> Published:
    width = len(str(len(report["queries"])))
    paths = [
        path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}")
        for number in range(1, len(report["queries"]) + 1)
    ]
    for one in paths:
        refuse_existing(one, force=force)
    size = 0
    for query, one in zip(report["queries"], paths, strict=True):
        size += save_page(_fitted({**report, "queries": [query]}, megabytes), one, force=force)
    pages = [{"query": q, "file": p.name} for q, p in zip(report["queries"], paths, strict=True)]
    # The list last: all its links work once it exists.
    index = render_page("queries.html.j2", report=report, pages=pages)
    return Published([path, *paths], size + save_page(index, path, force=force))


def text(report: Mapping[str, Any], kind: str, token: str) -> str:
    """Return a report as `json`, `jsonl` or `csv`."""
    if kind == "json":
        return dump(report)
    return as_csv(report, token) if kind == "csv" else as_jsonl(report, token)


def save_page(text: str, path: Path, *, force: bool) -> int:
    """Write a page with mode 0600; return its bytes.

    Raises:
        InputError: the file exists and ``force`` is false, or it cannot be written.
    """
    refuse_existing(path, force=force)
    with _explained(path):
        return write_whole(path, text, replace=force, mode=0o600)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise InputError if there is a file that must not be replaced."""
    with _explained(path):
        if not force and os.path.lexists(path):
            raise FileExistsError(str(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise InputError(f"{path} already exists", hint="add --force to replace it") from None
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another file"
        ) from None
