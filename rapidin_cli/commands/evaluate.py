"""`rin evaluate`: how far to trust the scores of this model and data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands.adding import opt, project_of, switch
from rapidin_cli.commands.options import AsJson, Checkpoint, Device, Html
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.evaluation.evaluate import Plan
    from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint


Queries = Annotated[Path, opt("FILE", "JSONL, or a JSON list, of queries in the data's shapes.")]
Scores = Annotated[str, opt("LIST", "Such as ekfac,rapidin,bm25,random. Default: all of them.")]
Exact = Annotated[
    bool, switch("Score every row from its whole gradient, not as cached.", "--exact")
]
Force = Annotated[bool, switch("Overwrite the HTML file.", "--force")]
Trainings = Annotated[int, opt("N", "Trainings at a time on a CPU. They share its cores.", min=1)]
Planted = Annotated[str, opt("REGEX", "Matches the ids of the rows that should be found.")]
Found = Annotated[int, opt("K", "The k of precision at k.", min=1)]
Subsets = Annotated[int, opt("N", "Random halves to train on.", min=3)]
Dropped = Annotated[int, opt("N", "Rows to leave out.", min=1)]
Unlearnt = Annotated[int, opt("N", "Rows to unlearn.", min=1)]
Steps = Annotated[int, opt("N", "Steps uphill.", min=1)]
Rate = Annotated[float, opt("X", "What a weight moves in a step.", min=0)]
Repeats = Annotated[int, opt("N", "Random drops to compare with.", min=1)]


def retrieval(
    context: typer.Context,
    queries: Queries,
    planted: Planted = "",
    top: Found = 10,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Do the scores find rows that you know to be the cause? Precision, auPRC, auROC.

    A query may have a field `planted` of its own instead of --planted.

    Examples:
        rin evaluate retrieval --queries queries.jsonl --planted "^backdoor-"
    """
    from rapidin_cli.evaluation.evaluate import retrieval as run
    from rapidin_cli.evaluation.planted import planted_rows

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, 1)
    find = planted_rows(queries, planted)
    _show(lambda progress: run(opened, plan, find, top, progress), as_json, html, force)


def lds(
    context: typer.Context,
    queries: Queries,
    subsets: Subsets = 50,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    workers: Trainings = 1,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Do the scores predict what training on random halves does? (1 is perfect, 0 is chance.)

    Trains with \\[evaluate] command of rin.toml, or with the built-in trainer. You can interrupt
    it and run it again: finished trainings are kept.

    Examples:
        rin evaluate lds --queries queries.jsonl --subsets 20
    """
    from rapidin_cli.evaluation.evaluate import linear_datamodeling

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, workers)
    _show(
        lambda progress: linear_datamodeling(opened, plan, subsets, progress), as_json, html, force
    )


def counterfactual(
    context: typer.Context,
    queries: Queries,
    top: Dropped = 10,
    repeats: Repeats = 5,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    workers: Trainings = 1,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Leave out the top rows of each score and train again: how far does the query's loss rise?

    It takes one training for each query and score, and a few for random rows. They are kept, as
    those of lds are.

    Examples:
        rin evaluate counterfactual --queries queries.jsonl --top 10
    """
    from rapidin_cli.evaluation.evaluate import counterfactual as run

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, workers)
    _show(lambda progress: run(opened, plan, top, repeats, progress), as_json, html, force)


def unlearn(
    context: typer.Context,
    queries: Queries,
    top: Unlearnt = 10,
    repeats: Repeats = 5,
    steps: Steps = 3,
    rate: Rate = 1e-4,
    checkpoint: Checkpoint = "",
    scores: Scores = "",
    exact: Exact = False,
    device: Device = "auto",
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
) -> None:
    """Unlearn the top rows of each score: how far does the query's loss rise? No training.

    A few steps uphill on the rows, on the checkpoint itself, which is not changed. The score
    unlearn is the other way around: how far a row's loss rises as the query is unlearnt.

    Examples:
        rin evaluate unlearn --queries queries.jsonl --scores ekfac,unlearn,bm25
    """
    from rapidin_cli.evaluation.evaluate import unlearning as run
    from rapidin_cli.evaluation.unlearning import Ascent

    opened, plan = _plan(context, queries, checkpoint, scores, exact, device, 1)
    plan = replace(plan, ascent=Ascent(steps, rate))
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
    from rapidin_cli.evaluation.evaluate import Plan
    from rapidin_cli.influence.queries import read_questions

    project = project_of(context)
    questions = read_questions(queries, project.config.data, generate=False)
    names = [name.strip() for name in scores.split(",") if name.strip()]
    return project.opened(checkpoint), Plan(questions, names, exact, device, workers)


def _show(run: Any, as_json: bool, html: Path | None, force: bool) -> None:
    from rapidin_cli.report import evaluation

    with console.counting("loading model and cache") as progress:
        found = run(progress)
    if html is not None:
        size = evaluation.save_html(found, html, force=force)
        console.say(f"wrote {html} ({size:,} bytes)")
    if as_json:
        console.as_json(found)
    else:
        evaluation.show(found)
