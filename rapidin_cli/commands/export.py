"""`rin export`: snapshots for other programs, and the training data without what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands.adding import arg, opt, project_of
from rapidin_cli.commands.options import Span
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.report.data_export import Wanted


def _result(told: str) -> Any:
    return typer.Option(metavar="RESULT", help=told)


Checkpoint = Annotated[
    str, arg("CHECKPOINT", "For --zarr: NAME or NAME@SNAPSHOT. Default: the last checkpoint.")
]
Zarr = Annotated[Path | None, opt("FOLDER", "Write a snapshot as a plain Zarr v3 group.")]
Drop = Annotated[
    str, _result("Write the data without the rows of this result; `latest` is the newest.")
]
Only = Annotated[str, _result("Write only the rows of this result.")]
Weigh = Annotated[
    str, _result("Write all rows with a field `weight`: --weight for these, 1 for the others.")
]
Review = Annotated[str, _result("Write the rows of this result as CSV, to mark keep or drop.")]
Reviewed = Annotated[Path | None, opt("CSV", "Write the data without the rows marked drop.")]
Out = Annotated[Path | None, opt("FILE", "The new file: JSONL, or CSV.")]
Top = Annotated[int, opt("N", "Rows of each query and side.", min=1)]
Side = Annotated[str, opt("SIDE", "raised, lowered or both.")]
Query = Annotated[str, opt("ID", "Only what was found for this query.")]
Weight = Annotated[float, opt("X", "The weight of --weigh.", min=0)]


def export(
    context: typer.Context,
    checkpoint: Checkpoint = "",
    zarr: Zarr = None,
    drop: Drop = "",
    only: Only = "",
    weigh: Weigh = "",
    review: Review = "",
    reviewed: Reviewed = None,
    out: Out = None,
    top: Top = 50,
    side: Side = "raised",
    query: Query = "",
    token: Span = "",
    weight: Weight = 0.0,
) -> None:
    """Write the training data without (or with only) the rows that a result found.

    Or write a snapshot of cached rows as plain Zarr.

    Examples:
        rin export --drop latest --out cleaned.jsonl
        rin export --review latest --out review.csv
        rin export --zarr rows.zarr
    """
    from rapidin_cli.report.data_export import Wanted

    ways = {"drop": drop, "only": only, "weigh": weigh, "review": review}
    given = [name for name, value in ways.items() if value]
    given += ["zarr"] * (zarr is not None) + ["reviewed"] * (reviewed is not None)
    if len(given) != 1:
        raise UsageError(
            "say what to write in exactly one way",
            hint="rin export --zarr DIR, or --drop, --only, --weigh, --review RESULT or "
            "--reviewed CSV with --out FILE",
        )
    project = project_of(context)
    if zarr is not None:
        _snapshot(project, checkpoint, zarr)
        return
    if out is None:
        raise UsageError(f"--{given[0]} needs --out FILE", hint="add --out cleaned.jsonl")
    result = drop or only or weigh or review
    _rows(project, given[0], result, Wanted(query, token, side, top), out, reviewed, weight)


def _snapshot(project: Project, checkpoint: str, folder: Path) -> None:
    from rapidin_storage.export import export_zarr

    if folder.exists():
        raise UsageError(f"{folder} already exists", hint="choose another folder")
    _, snapshot = project.resolve_snapshot(checkpoint)
    size = export_zarr(snapshot, folder)
    console.say(f"wrote {folder}: {snapshot.commit.rows:,} rows, {console.size(size)}")
    console.say(f'next: python -c "import zarr; print(zarr.open_group({str(folder)!r}).tree())"')


def _rows(
    project: Project,
    way: str,
    result: str,
    wanted: Wanted,
    out: Path,
    reviewed: Path | None,
    weight: float,
) -> None:
    from rapidin_cli.report import data_export

    named = "" if result == "latest" else result
    if reviewed is None:
        found = data_export.found(project.results.load(named), wanted)
    else:
        found = data_export.read_review(reviewed)
    if way == "review":
        count = data_export.write_review(found, out)
        console.say(f"wrote {out}: {console.count(count, 'row')}, all marked keep")
        console.say(
            f"next: mark rows as drop, then rin export --reviewed {out} --out cleaned.jsonl"
        )
        return
    change = data_export.weighted(weight) if way == "weigh" else data_export.CHANGES[way]
    done = data_export.write_rows(project.root, project.config.data, found, change, out)
    told = {
        "only": f"all of them from {named or 'the newest result'}",
        "weigh": f"{done.changed:,} of them with weight {weight:g}",
    }.get(way, f"{done.changed:,} left out")
    console.say(f"wrote {out}: {console.count(done.rows, 'row')}, {told}")
    if done.broken:
        console.warn(
            f"could not write {console.count(len(done.broken), 'line')} of the data without a JSON "
            f"object; the first is {done.broken[0]}"
        )
    if way != "weigh":
        console.say("next: train on it, then check with rin retrieve if the model still says it")
