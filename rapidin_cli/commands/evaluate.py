"""`rin evaluate`: how far to trust the scores of this model and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands.options import Checkpoint
from rapidin_cli.output import console
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint

if TYPE_CHECKING:
    from rapidin_cli.evaluation.evaluate import Plan


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Measure how well influence does on this model and data."
    )
    group.command(name="retrieval")(retrieval)
    group.command(name="lds")(lds)
    group.command(name="counterfactual")(counterfactual)
    app.add_typer(group, name="evaluate")


Queries = Annotated[Path, typer.Option(help="JSONL or JSON list of queries, in the data's shapes.")]
Scores = Annotated[
    str, typer.Option(help="A list such as ekfac,rapidin,bm25,random; all by default.")
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Score all rows from whole gradients, not as cached.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON (rin.evaluation/1).")]
Html = Annotated[Path | None, typer.Option(help="Write a page with a plot.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the HTML file.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Trainings at a time on a CPU; they share its cores.")
]


def retrieval(
    context: typer.Context,
    queries: Queries,
    planted: Annotated[
        str, typer.Option(help="Regular expression on the ids of the rows to be found.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="k of the precision at k.")] = 10,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Rank rows that you know to be the cause: precision, auPRC, auROC.

    A query may have a field `planted` of its own, in place of --planted.
    """
    from rapidin_cli.evaluation.evaluate import retrieval as run
    from rapidin_cli.evaluation.planted import planted_rows

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, 1)
    find = planted_rows(queries, planted)
    _show(lambda progress: run(opened, plan, find, top, progress), as_json, html, force)


def lds(
    context: typer.Context,
    queries: Queries,
    subsets: Annotated[int, typer.Option(min=3, help="Random halves to train on.")] = 50,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    workers: Workers = 1,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Train on random halves: do summed influences rank the outcomes? (1 is perfect, 0 chance.)

    Trains with \\[evaluate] command of rin.toml, or with the built-in trainer. May be
    interrupted and run again: trainings that are done are kept.
    """
    from rapidin_cli.evaluation.evaluate import linear_datamodeling

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, workers)
    _show(
        lambda progress: linear_datamodeling(opened, plan, subsets, progress),
        as_json,
        html,
        force,
    )


def counterfactual(
    context: typer.Context,
    queries: Queries,
    top: Annotated[int, typer.Option(min=1, help="Rows to leave out.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Random drops to compare with.")] = 5,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    workers: Workers = 1,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Leave out each score's top rows and train again: how far does the query's loss rise?

    One training for each query and score, and a few for random rows; kept as those of lds.
    """
    from rapidin_cli.evaluation.evaluate import counterfactual as run

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, workers)
    _show(lambda progress: run(opened, plan, top, repeats, progress), as_json, html, force)


def _plan(
    context: typer.Context,
    queries: Path,
    checkpoint: str,
    scores: str,
    exact: bool,
    device: str,
    workers: int,
) -> tuple[ProjectCheckpoint, Plan]:
    from rapidin_cli.api import Project
    from rapidin_cli.evaluation.evaluate import Plan
    from rapidin_cli.influence.queries import read_questions

    project = Project.open(context.obj.directory)
    questions = read_questions(queries, project.config.data, generate=False)
    names = [name.strip() for name in scores.split(",") if name.strip()]
    return project.opened(checkpoint), Plan(questions, names, exact, device, workers)


def _show(
    run: Any,
    as_json: bool,
    html: Path | None,
    force: bool,
) -> None:
    from rapidin_cli.report import evaluation

    with console.progress() as bar:
        task = bar.add_task("loading model and cache", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        found = run(advance)
    if html is not None:
        size = evaluation.save_html(found, html, force=force)
        console.say(f"wrote {html} ({size:,} bytes)")
    if as_json:
        console.as_json(found)
    else:
        evaluation.show(found)
