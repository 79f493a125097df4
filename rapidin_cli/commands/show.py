"""`rin show`: one training row as the model sees it, and what is cached of it."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.commands.options import AsJson, Checkpoint
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console

Row = Annotated[str, arg("ROW", "A row's id, FILE:LINE, or the start of its digest.")]
SelfInfluence = Annotated[
    bool, switch("List the rows that influence themselves most.", "--self-influence")
]
ScoreName = Annotated[str, opt("NAME", "Score of --self-influence: dot or gram.")]
Top = Annotated[int, opt("N", "Rows to list.", min=1)]


def show(
    context: typer.Context,
    row: Row = "",
    checkpoint: Checkpoint = "",
    self_influence: SelfInfluence = False,
    score: ScoreName = "dot",
    top: Top = 20,
    as_json: AsJson = False,
) -> None:
    """Show one training row: its text, the tokens it teaches, its cached loss and gradient norms.

    With --self-influence, list the rows whose own gradient moves their own loss most. These are
    often outliers and wrong labels.

    Examples:
        rin show data/train.jsonl:12
        rin show --self-influence
    """
    from rapidin_cli.report import rows
    from rapidin_cli.workspace.training_row import row_facts

    if bool(row) == self_influence:
        raise UsageError(
            "give either a row or --self-influence",
            hint="rin show ROW, or rin show --self-influence",
        )
    project = project_of(context)
    opened = project.opened(checkpoint)
    if self_influence:
        from rapidin_cli.influence.self_influence import self_influences

        spec = project.config.gradient
        found = self_influences(opened.name, opened.dataset, opened.snapshot(), spec, score, top)
        if as_json:
            console.as_json(found)
        else:
            rows.show_self_influences(found)
        return
    facts = row_facts(opened, row)
    if as_json:
        console.as_json(facts)
    else:
        rows.show_row(facts)
