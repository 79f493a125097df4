"""`rin retrieve`: which training examples made the model say this?"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.commands.options import Checkpoint
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.influence.queries import Question


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="retrieve")(retrieve)


def retrieve(
    context: typer.Context,
    stdin: Annotated[
        str | None, typer.Argument(metavar="[-]", help="`-` reads queries (JSONL) from stdin.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the model was asked.")] = None,
    response: Annotated[str | None, typer.Option(help="What it said: this is explained.")] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the model answer the prompt, and explain that.")
    ] = False,
    queries: Annotated[
        Path | None, typer.Option(help="JSONL or JSON list of queries, in the data's shapes.")
    ] = None,
    row: Annotated[
        str | None, typer.Option(help="Explain a training row itself, by id: a self-check.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="What it should have said: explain the difference.")
    ] = None,
    focus: Annotated[
        str | None, typer.Option(help="Explain only these words of the response.")
    ] = None,
    token: Annotated[
        str, typer.Option(metavar="N[:M]", help="Explain only these tokens of the response.")
    ] = "",
    checkpoint: Checkpoint = "",
    checkpoints: Annotated[
        str,
        typer.Option(
            help="all, or a list: add scores, weighted by learning rates.",
            autocompletion=completion.several_checkpoints,
        ),
    ] = "",
    score: Annotated[
        str,
        typer.Option(help=", ".join(completion.SCORES) + ".", autocompletion=completion.scores),
    ] = "auto",
    exact: Annotated[
        int,
        typer.Option(
            min=0,
            help="Score so many times --top (and --token-top) exactly, and up to four times as "
            "many where sketches leave doubt; 0: sketches decide.",
        ),
    ] = 4,
    top: Annotated[int, typer.Option(min=1, help="Examples to keep of each sign.")] = 10,
    token_top: Annotated[
        int, typer.Option(min=0, help="... and for each explained token, of each sign.")
    ] = 5,
    cells: Annotated[
        int,
        typer.Option(min=0, help="For so many of each sign, training token x generated token."),
    ] = 0,
    damping: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Of gram, adam and ekfac: a share of the layer's mean."),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Score every explained token.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit for --generate.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    hold: Annotated[
        str,
        typer.Option(help="For many queries: keep cached rows in the memory of cpu or gpu."),
    ] = "disk",
    executor: Annotated[
        str, typer.Option(help="local, or ray: the Ray cluster of RAY_ADDRESS scans the rows.")
    ] = "local",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON (rin.report/1).")
    ] = False,
) -> None:
    """Score every cached training example for a generation, token by token.

    Give a prompt and the response to explain, or a prompt with --generate, or a file of
    queries. The result is saved: `rin report` shows it again.
    """
    from rapidin_cli.api import Project
    from rapidin_cli.gradients.optimizer_state import has_second_moments
    from rapidin_cli.influence.options import Options
    from rapidin_cli.influence.score import AUTO

    if cells and not (exact and tokens):
        raise UsageError(
            "--cells needs exact scores of tokens", hint="leave out --exact 0 and --no-tokens"
        )
    project = Project.open(context.obj.directory)
    questions = _narrowed(
        _questions(project, stdin, prompt, response, generate, queries, row),
        contrast,
        focus,
        token,
    )
    with console.progress() as bar:
        task = bar.add_task("loading model and cache", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        report = project.retrieve(
            questions,
            Options(
                score=score,
                exact=exact,
                top=top,
                token_top=token_top,
                cells=cells,
                damping=damping,
                tokens=tokens,
                max_new_tokens=max_new_tokens,
                batch_tokens=project.config.cache.batch_tokens,
            ),
            checkpoint=checkpoint,
            checkpoints=_several(checkpoint, checkpoints),
            device=device,
            hold=hold,
            executor=executor,
            command=shlex.join(["rin", *sys.argv[1:]]),
            progress=advance,
        )
    if as_json:
        console.as_json(report)
    else:
        from rapidin_cli.report import terminal

        terminal.show(report)
    if project.results.unsaved:
        console.warn(f"rin report cannot show it again: {project.results.unsaved}")
    if score == AUTO and report["score"]["name"] == "dot":
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
            "--checkpoint and --checkpoints cannot be combined", hint="give one of them"
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
    """Put on the questions what the options say of each."""

    if (contrast is not None) + (focus is not None) + bool(token) > 1:
        raise UsageError(
            "--contrast, --focus and --token cannot be combined",
            hint="explain the difference of two responses, or a part of one",
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
) -> list[Question]:
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
            "--response goes with --prompt", hint="rin retrieve --prompt TEXT --response TEXT"
        )
    if row is not None:
        return [Question("q1", training_row=row)]
    if stdin is not None and stdin != "-":
        raise UsageError(
            f"unexpected argument {stdin!r}", hint="rin retrieve --prompt TEXT --response TEXT"
        )
    return read_questions(queries or Path("/dev/stdin"), project.config.data, generate=generate)
