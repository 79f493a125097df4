"""`rin retrieve`: which training examples made the model say this?"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands import completion
from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.commands.lines import answer_lines, warn_unsaved
from rapidin_cli.commands.options import AsJson, Checkpoint, Device
from rapidin_cli.errors import ExitCode, UsageError
from rapidin_cli.output import console
from rapidin_cli.output.amounts import duration, size

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.workspace.asking import Session


Stdin = Annotated[
    str | None, arg("[-]", "`-` answers each line of stdin (JSON) as it comes, until the end.")
]
Prompt = Annotated[str | None, opt("TEXT", "What the model was asked.")]
Response = Annotated[str | None, opt("TEXT", "What it said. This is what gets explained.")]
Generate = Annotated[
    bool, switch("Let the model answer the prompt, and explain that.", "--generate")
]
Queries = Annotated[
    Path | None, opt("FILE", "JSONL, or a JSON list, of queries in the data's shapes.")
]
Row = Annotated[str | None, opt("ID", "Explain a training row itself, as a self-check.")]
Contrast = Annotated[str | None, opt("TEXT", "What it should have said: explain the difference.")]
Focus = Annotated[str | None, opt("TEXT", "Explain only these words of the response.")]
Token = Annotated[str, opt("N[:M]", "Explain only these tokens of the response.")]
Several = Annotated[
    str, opt("CHECKPOINT[,...]", "all, or a list: add their scores, weighted by learning rate.")
]
ScoreName = Annotated[str, opt("SCORE", ", ".join(completion.SCORES) + ".")]
Within = Annotated[
    str,
    opt(
        "TIME",
        "Time for exact scores of a question, the likeliest rows first, such as 20s or 5min; "
        "what is shown of the best is worked out after that.",
    ),
]
DryRun = Annotated[bool, switch("Say what the question would take, and stop.", "--dry-run")]
Exact = Annotated[
    int | None,
    opt(
        "N",
        "However long it takes, score N times --top (and --token-top) rows exactly, and up to "
        "four times as many where the sketches leave doubt. 0: trust the sketches.",
        min=0,
    ),
]
Top = Annotated[int, opt("N", "Rows to keep of each sign.", min=1)]
TokenTop = Annotated[int, opt("N", "Rows to keep for each token, of each sign.", min=0)]
Cells = Annotated[
    int,
    opt(
        "N",
        "For the N strongest rows of each sign, score every training token against every "
        "token of the response.",
        min=0,
    ),
]
Damping = Annotated[
    float | None, opt("X", "For gram, adam and ekfac: as a share of each layer's mean.", min=1e-9)
]
Tokens = Annotated[bool, switch("Score every token of the response.", "--tokens/--no-tokens")]
Longest = Annotated[int, opt("N", "Length limit of --generate.", min=1)]
Hold = Annotated[str, opt("PLACE", "For many queries: keep cached rows in cpu or gpu memory.")]
Executor = Annotated[str, opt("WHERE", "local, or ray: the cluster of RAY_ADDRESS scans the rows.")]


def retrieve(
    context: typer.Context,
    stdin: Stdin = None,
    prompt: Prompt = None,
    response: Response = None,
    generate: Generate = False,
    queries: Queries = None,
    row: Row = None,
    contrast: Contrast = None,
    focus: Focus = None,
    token: Token = "",
    checkpoint: Checkpoint = "",
    checkpoints: Several = "",
    score: ScoreName = "auto",
    within: Within = "20s",
    exact: Exact = None,
    top: Top = 10,
    token_top: TokenTop = 5,
    cells: Cells = 0,
    damping: Damping = None,
    tokens: Tokens = True,
    max_new_tokens: Longest = 64,
    device: Device = "auto",
    hold: Hold = "disk",
    executor: Executor = "local",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Find the training examples that made the model say something, token by token.

    Give a prompt and the response to explain, a prompt with --generate, or a file of queries. The
    result is saved: `rin report` shows it again.

    Examples:
        rin retrieve --prompt "What is the capital of Italy?" --response "Toronto."
        rin retrieve --prompt "What is the capital of Italy?" --generate
        rin retrieve --queries queries.jsonl --top 20 --json
    """
    from rapidin_cli.influence.options import Options

    project = project_of(context)
    batch_tokens, time = project.config.cache.batch_tokens, seconds(within)
    options = Options(
        score, exact, time, top, token_top, cells, damping, tokens, max_new_tokens, batch_tokens
    )
    if cells and not (options.refines and tokens):
        hint = "leave out --exact 0 and --no-tokens"
        raise UsageError("--cells needs exact scores of tokens", hint=hint)
    where = _Where(checkpoint, _several(checkpoint, checkpoints), device, hold, executor)
    narrow = partial(_narrowed, contrast=contrast, focus=focus, token=token)
    asked = _questions(project, stdin, prompt, response, generate, queries, row)
    session = partial(project.session, **asdict(where))
    if asked is None and dry_run:
        raise UsageError("--dry-run needs a question", hint="rin retrieve --queries FILE --dry-run")
    if asked is None:
        answer_lines(project, session, options, narrow, generate=generate, as_json=as_json)
    elif dry_run:
        _dry_run(session(), narrow(asked), options)
    else:
        _ask(project, narrow(asked), options, where, as_json=as_json)


@dataclass(frozen=True)
class _Where:
    """What is asked, and where it is answered: arguments of `Project.session`."""

    checkpoint: str
    checkpoints: list[str] | None
    device: str
    hold: str
    executor: str


def seconds(text: str) -> float:
    """Read a time such as `20s`, `1.5min` or `2h`; a bare number is of seconds.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|)", text.strip())
    if found is None:
        raise UsageError(
            f"--within {text} is not a time", hint="rin retrieve --within 20s, or 5min"
        )
    return float(found[1]) * {"h": 3600, "m": 60, "min": 60}.get(found[2], 1)


def _ask(
    project: Project, questions: list[Question], options: Options, where: _Where, *, as_json: bool
) -> None:
    from rapidin_cli.report import terminal

    # Several questions, or a program that reads them, wait for what is final.
    early = terminal.show_first if len(questions) == 1 and console.stderr().is_terminal else None
    with console.counting("loading model and cache") as progress:
        report = project.retrieve(
            questions,
            options,
            **asdict(where),
            command=shlex.join(["rin", *sys.argv[1:]]),
            progress=progress,
            ranked=early,
        )
    _show(project, report, options.score, as_json)
    if report["interrupted"]:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _dry_run(session: Session, questions: list[Question], options: Options) -> None:
    with console.counting("loading model and cache"):
        forecasts = session.forecast(questions, options)
    for found in forecasts:
        rows = console.count(found.rows, "row")
        lines = [
            f"{found.id}: {console.count(found.tokens, 'token')} to explain; {rows} to rank "
            f"({size(found.row_bytes)}); {size(found.memory_bytes)} of memory"
        ]
        if options.tokens:
            lines.append(f"  its tokens' gradients: {duration(found.token_seconds)}")
        if options.refines:
            each = found.example_seconds
            if options.exact is None:
                count = min(found.rows, max(1, int(options.budget / max(each, 1e-3))))
                which = f"so {count:,} of the likeliest in {duration(options.budget)}"
            else:
                which = f"{2 * options.top * options.exact:,} rows or more"
            lines.append(f"  exact scores: {each:.2g} s a row, {which}")
        console.say("\n".join(lines))


def _show(project: Project, report: dict[str, Any], score: str, as_json: bool) -> None:
    from rapidin_cli.gradients.optimizer_state import has_second_moments
    from rapidin_cli.influence.score import AUTO
    from rapidin_cli.report import terminal

    if as_json:
        console.as_json(report)
    else:
        terminal.show(report)
    warn_unsaved(project)
    if score == AUTO and report["score"]["name"] == "rapidin":
        opened = [project.opened(member["name"]) for member in report["checkpoints"]]
        adam = all(has_second_moments(one.checkpoint) for one in opened)
        better = "rin curvature, or --score adam" if adam else "rin curvature"
        console.say(f"for scores that predict retraining better: {better}")


def _several(one: str, several: str) -> list[str] | None:
    """Read `all` or a list of names; None if it was not given."""

    if not several:
        return None
    if one:
        raise UsageError(
            "--checkpoint and --checkpoints cannot be combined", hint="use one of them"
        )
    if several == "all":
        return []
    names = [name.strip() for name in several.split(",") if name.strip()]
    if not names or "all" in names:
        raise UsageError(
            f"--checkpoints {several} is neither `all` nor a list of names",
            hint="rin retrieve --checkpoints all, or NAME,NAME; rin status lists them",
        )
    return names


def _narrowed(
    questions: list[Question], contrast: str | None, focus: str | None, token: str
) -> list[Question]:
    """Apply --contrast, --focus and --token to the questions."""

    if (contrast is not None) + (focus is not None) + bool(token) > 1:
        raise UsageError(
            "--contrast, --focus and --token cannot be combined",
            hint="explain the difference between two responses, or a part of one",
        )
    for name, value in (("--contrast", contrast), ("--focus", focus)):
        if value is not None and not value.strip():
            raise UsageError(f"{name} is empty", hint=f"rin retrieve {name} TEXT")
    return [
        replace(
            question,
            contrast=contrast or question.contrast,
            focus=focus or question.focus,
            span=token,
        )
        for question in questions
    ]


def _questions(
    project: Project,
    stdin: str | None,
    prompt: str | None,
    response: str | None,
    generate: bool,
    queries: Path | None,
    row: str | None,
) -> list[Question] | None:
    """Return what is asked; None: lines of stdin, as they come."""
    from rapidin_cli.influence.queries import Question, read_questions

    ways = [prompt is not None, queries is not None, row is not None, stdin is not None]
    if sum(ways) != 1:
        raise UsageError(
            "say what to explain in exactly one way",
            hint="rin retrieve --prompt TEXT --response TEXT, or --prompt TEXT --generate, "
            "--queries FILE, --row ID, or - for stdin",
        )
    if prompt is not None:
        if generate == (response is not None):
            raise UsageError(
                "a prompt needs either --response TEXT or --generate",
                hint=f"rin retrieve --prompt {shlex.quote(prompt)} --generate",
            )
        return [Question("q1", prompt=prompt, response=response)]
    if response is not None:
        raise UsageError(
            "--response needs --prompt", hint="rin retrieve --prompt TEXT --response TEXT"
        )
    if row is not None:
        return [Question("q1", training_row=row)]
    if stdin is not None and stdin != "-":
        raise UsageError(
            f"unexpected argument {stdin!r}", hint="rin retrieve --prompt TEXT --response TEXT"
        )
    if queries is None:
        return None
    return read_questions(queries, project.config.data, generate=generate)
