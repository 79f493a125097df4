"""The report as one HTML file that needs no network: ``templates/report.*`` around the data.

The header, the totals and the strongest three examples of each sign are plain markup, so they
are there without JavaScript. The whole view model (``schema.json``) travels compressed in one
inert script element, and ``report.js`` draws the rest from it. A content security policy names
the script and the style sheet by their digests and allows nothing else.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from rapidin_cli.errors import InputError
from rapidin_cli.resources import template_text
from rapidin_cli.sanitise import visible

STATIC_EXAMPLES = 3
"""Examples of each sign that the page shows without JavaScript."""


def render_html(report: Mapping[str, Any]) -> str:
    """Return the page for a ``rin.report/1`` object; the same input gives the same text.

    Raises:
        ValueError: a number of the report is NaN or infinite.
        jinja2.UndefinedError: the report lacks something that the schema requires.
    """
    data = _compressed(report)
    style, script = _static("report.css"), _static("report.js")
    page = _environment().get_template("report.html.j2")
    return page.render(
        report=report,
        policy=_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        data=data,
        static=[_static_query(query) for query in report["queries"]],
    )


def render_page(template: str, **values: Any) -> str:
    """Return a page without a script; its style sheet has the template's name."""
    style = _static(template.replace(".html.j2", ".css"))
    page = _environment().get_template(template)
    return page.render(policy=_policy("", style), style=Markup(style), **values)


def _static(name: str) -> str:
    text = template_text(name)
    if re.search("</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError(f"{name} would end its own element")
    return text


def write_html(report: Mapping[str, Any], path: Path, *, force: bool) -> int:
    """Write the report's page for its owner only (mode 0600); see `save_page`.

    Raises:
        FileExistsError: ``path`` is there and ``force`` is false.
    """
    if not force and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already")
    return _write(render_html(report), path, force=force)


def _write(text: str, path: Path, *, force: bool) -> int:
    content = text.encode("utf-8")
    # mkstemp creates its file with mode 0600, whatever the umask.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if force:
            Path(temporary).replace(path)
        else:
            # A link, unlike a rename, fails when somebody made the file in the meantime.
            os.link(temporary, path)
            Path(temporary).unlink()
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return len(content)


def save_html(report: Mapping[str, Any], path: Path, *, force: bool) -> int:
    """Do as `write_html`, with errors for the user.

    Raises:
        InputError: the file is there, or cannot be written.
    """
    with _explained(path):
        return write_html(report, path, force=force)


def save_page(text: str, path: Path, *, force: bool) -> int:
    """Write a page for its owner only (mode 0600), whole or not at all; return its bytes.

    Raises:
        InputError: the file is there and ``force`` is false, or it cannot be written.
    """
    with _explained(path):
        if not force and os.path.lexists(path):
            raise FileExistsError(f"{path} is there already")
        return _write(text, path, force=force)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise InputError(f"{path} is there already", hint="add --force to replace it") from None
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another file"
        ) from None


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(template_text),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(visible=visible, signed=_signed, count=_count)
    return environment


def _compressed(report: Mapping[str, Any]) -> str:
    text = json.dumps(_lighter(report), allow_nan=False, separators=(",", ":"), sort_keys=True)
    packed = io.BytesIO()
    # GzipFile and not gzip.compress: its header does not depend on the Python version.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(text.encode("ascii"))
    return base64.b64encode(packed.getvalue()).decode("ascii")


def _lighter(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with four digits of each training token's score, enough to show it."""
    queries = []
    for query in report["queries"]:
        examples = []
        for example in query["examples"]:
            training = example["training"]
            if training is not None:
                training = [[text, float(f"{value:.4g}")] for text, value in training]
            examples.append({**example, "training": training})
        queries.append({**query, "examples": examples})
    return {**report, "queries": queries}


def _policy(script: str, style: str) -> str:
    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    return (
        f"default-src 'none'; script-src {source(script)}; style-src {source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _static_query(query: Mapping[str, Any]) -> dict[str, Any]:
    examples = query["examples"]
    raised = [example for example in examples if example["score"] > 0]
    lowered = [example for example in examples if example["score"] < 0]
    raised.sort(key=lambda example: (-example["score"], example["digest"]))
    lowered.sort(key=lambda example: (example["score"], example["digest"]))
    return {
        "query": query,
        "columns": [
            {"title": "Raised", "mark": "▲", "class": "plus", "examples": raised[:STATIC_EXAMPLES]},
            {
                "title": "Lowered",
                "mark": "▼",
                "class": "minus",
                "examples": lowered[:STATIC_EXAMPLES],
            },
        ],
    }


def _signed(number: float) -> str:
    return f"{number:+.3g}".replace("-", "−")


def _count(number: int) -> str:
    return f"{number:,}"
