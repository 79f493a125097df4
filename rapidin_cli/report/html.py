"""The report as one HTML file that needs no network: ``templates/report.*`` around the data.

The header, the totals and the strongest three examples of each sign are plain markup, so they
are there without JavaScript. The whole view model (``schema.json``) travels compressed in one
inert script element, and ``report.js`` draws the rest from it. A content security policy names
the script and the style sheet by their digests and allows nothing else.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from rapidin_cli.output.sanitise import visible
from rapidin_cli.output.templates import template_text
from rapidin_cli.report.page_data import pack

STATIC_EXAMPLES = 3
"""Examples of each sign that the page shows without JavaScript."""


def render_html(report: Mapping[str, Any], *, rounded: bool = False) -> str:
    """Return the page for a ``rin.report/1`` object; the same input gives the same text.

    Args:
        rounded: see `pack`.

    Raises:
        ValueError: a number of the report is NaN or infinite.
        jinja2.UndefinedError: the report lacks something that the schema requires.
    """
    data = base64.b64encode(pack(report, rounded=rounded)).decode("ascii")
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
    """Return a page without a script."""
    style = _static("plain.css")
    page = _environment().get_template(template)
    return page.render(policy=_policy("", style), style=Markup(style), **values)


def _static(name: str) -> str:
    text = template_text(name)
    if re.search("</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError(f"{name} would end its own element")
    return text


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
