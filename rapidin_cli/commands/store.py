"""`rin verify`, `gc` and `log`: the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.commands.options import AsJson, Remote
from rapidin_cli.errors import ExitCode, UsageError
from rapidin_cli.output import console
from rapidin_cli.output.console import count, size
from rapidin_cli.output.sanitise import visible

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.workspace.upkeep import Checked
    from rapidin_storage.verify import Verdict

_NAMED = 10

Quick = Annotated[bool, switch("Only check that every object exists, in full size.", "--quick")]
Repair = Annotated[
    bool, switch("Fetch what is damaged from a remote; drop rows that nobody has.", "--repair")
]
Grace = Annotated[str, opt("TIME", "Keep what is younger than this: 24h, 90m, 7d.")]
Alone = Annotated[bool, switch("Nobody else writes there now: allow less than 24h.", "--alone")]
Local = Annotated[bool, switch("Delete local objects that the remote is seen to hold.", "--local")]
Compact = Annotated[bool, switch("Close the holes that concurrent writers left.", "--compact")]
Yes = Annotated[bool, switch("Do it, instead of only saying what.", "--yes", "-y")]
Checkpoint = Annotated[str, arg("CHECKPOINT", "Name from rin.toml. Default: the last one.")]


def verify(
    context: typer.Context,
    remote: Remote = "",
    quick: Quick = False,
    repair: Repair = False,
    as_json: AsJson = False,
) -> None:
    """Read and check every object of every snapshot. Exits with 5 if something is wrong.

    Examples:
        rin verify
        rin verify --repair --remote origin
    """
    from rapidin_cli.workspace.upkeep import check

    project = project_of(context)
    read = 0
    with console.stages() as shown:
        shown("verifying")

        def advance(more: int) -> None:
            nonlocal read
            read += more
            shown("verifying", read, written=size)

        checked = check(project, remote, quick=quick, mend=repair, advance=advance)
    lost = _lost_rows(project, checked)
    if as_json:
        console.as_json(_verify_json(checked, lost))
    else:
        for verdict in checked.found:
            console.raw(visible(_verdict_line(verdict, quick)))
            for problem in verdict.problems:
                console.raw(visible(f"  {problem.message}"))
        if not checked.found:
            console.say("the store has no caches yet")
    _say_repaired(checked, lost)
    if not checked.clean:
        where = f" --remote {remote}" if remote else ""
        console.say(f"next: rin verify --repair{where}")
        raise typer.Exit(int(ExitCode.STORE))


def _lost_rows(project: Project, checked: Checked) -> list[str]:
    """Name the rows that a repair removed: by their ids, if the data is here."""
    from rapidin_cli.workspace.diff import row_ids

    digests = sorted({digest for repaired in checked.repaired for digest in repaired.digests})
    names = [checkpoint.name for checkpoint in project.config.checkpoints]
    ids = row_ids(project, names) if digests else {}
    return [ids.get(digest, digest.hex()) for digest in digests]


def _say_repaired(checked: Checked, lost: list[str]) -> None:

    if not checked.repaired:
        return
    fetched = sum(repaired.fetched for repaired in checked.repaired)
    rows = sum(repaired.rows for repaired in checked.repaired)
    if fetched:
        console.say(f"{fetched:,} objects were fetched from intact copies")
    if rows:
        named = ", ".join(lost[:_NAMED]) + (", ..." if rows > _NAMED else "")
        console.say(f"{rows:,} rows are lost and were removed from the newest snapshot: {named}")
    for verdict in checked.verdicts:
        for problem in verdict.problems:
            console.say(f"not repaired: {problem.message}")
    if any(repaired.given_up for repaired in checked.repaired):
        console.say("next: rin cache, which computes what is missing")


def _verdict_line(verdict: Verdict, quick: bool) -> str:

    whole = "all there, in full size" if quick else "intact"
    state = count(len(verdict.problems), "problem") if verdict.problems else whole
    there = f", {verdict.elsewhere:,} of them only on a remote" if verdict.elsewhere else ""
    return (
        f"cache {verdict.cache[:12]}: {state}; {count(verdict.commits, 'snapshot')}, "
        f"{count(verdict.objects, 'object')}, {size(verdict.size)}{there}"
    )


def _verify_json(checked: Checked, lost: list[str]) -> dict[str, Any]:
    return {
        "schema": "rin.verify/1",
        "clean": checked.clean,
        "repaired": {
            "fetched": sum(repaired.fetched for repaired in checked.repaired),
            "given_up": sum(repaired.given_up for repaired in checked.repaired),
            "lost_rows": sum(repaired.rows for repaired in checked.repaired),
            "lost": lost,
        },
        "caches": [
            {
                "cache": verdict.cache,
                "snapshots": verdict.commits,
                "objects": verdict.objects,
                "bytes": verdict.size,
                "elsewhere": verdict.elsewhere,
                "problems": [
                    {
                        "message": problem.message,
                        "snapshot": problem.commit,
                        "object": problem.part.ref.digest if problem.part else None,
                        "current": problem.current,
                    }
                    for problem in verdict.problems
                ],
            }
            for verdict in checked.found
        ],
    }


def gc(
    context: typer.Context,
    remote: Remote = "",
    grace: Grace = "24h",
    alone: Alone = False,
    local: Local = False,
    compact: Compact = False,
    yes: Yes = False,
) -> None:
    """Delete what no snapshot needs. Without --yes it only says what it would delete.

    Examples:
        rin gc
        rin gc --yes
        rin gc --local --yes
    """
    from rapidin_cli.workspace.upkeep import drop, garbage
    from rapidin_storage import StorageError
    from rapidin_storage.gc import parse_grace, remove_garbage
    from rapidin_storage.roots import GRACE

    project = project_of(context)
    if local and compact:
        raise UsageError("--local and --compact cannot be combined", hint="run one, then the other")
    if compact:
        _say_compacted(project, remote, yes)
        return
    if local:
        dropped = drop(project, remote, remove=yes)
        _say_removed(dropped.objects, dropped.size, yes, "that the remote holds")
        return
    try:
        seconds = parse_grace(grace)
    except StorageError as error:
        raise UsageError(str(error), hint="rin gc --grace 24h") from None
    if seconds < GRACE and not alone:
        raise UsageError(
            f"a grace of {grace} could remove what somebody is about to commit",
            hint="use 24h or more, or add --alone if nobody writes or pushes there",
        )
    root, found = garbage(project, remote, grace=seconds)
    if yes:
        freed = remove_garbage(root, found)
        _say_removed(len(found.entries), freed, True, "that nothing needs")
    else:
        _say_removed(len(found.entries), found.size, False, "that nothing needs")
    console.say(f"{found.kept:,} are needed, {found.young:,} are younger than {grace}")


def _say_compacted(project: Project, remote: str, done: bool) -> None:
    from rapidin_cli.workspace.upkeep import close_holes

    found = close_holes(project, remote, write=done)
    for cache, slots in found.items():
        what = f"cache {cache[:12]}: {slots.before:,} slots into {slots.after:,}"
        console.say(f"compacted {what}" if done else f"would compact {what}")
    if not found:
        console.say("there are no holes to close")
    elif not done:
        console.say("next: run it again with --yes")


def _say_removed(count: int, size: int, done: bool, which: str) -> None:

    amount = f"{count:,} objects {which}, {console.size(size)}"
    console.say(f"removed {amount}" if done else f"would remove {amount}")
    if count and not done:
        console.say("next: run it again with --yes")


def log(
    context: typer.Context,
    checkpoint: Checkpoint = "",
    remote: Remote = "",
    as_json: AsJson = False,
) -> None:
    """List the snapshots of a checkpoint's cache, newest first.

    Examples:
        rin log
        rin log checkpoint-300 --remote origin
    """
    from rapidin_cli.workspace.upkeep import history

    project = project_of(context)
    name = project.checkpoint_settings([checkpoint] if checkpoint else [])[-1].name
    commits = history(project, name, remote)
    if as_json:
        console.as_json(_log_json(name, commits))
        return
    rows = {commit.number: commit.rows for commit in commits}
    for commit in reversed(commits):
        change = commit.rows - rows.get(commit.number - 1, 0)
        by = commit.writer.get("host", "")
        kind = "  merged" if commit.merged else "  repaired" if commit.lost else ""
        console.raw(
            visible(
                f"{commit.number:>6}  {commit.tree[:12]}  {commit.time[:19]}  "
                f"{commit.rows:>9,} rows ({change:+,})  {by}{kind}"
            )
        )


def _log_json(name: str, commits: list[Any]) -> dict[str, Any]:
    return {
        "schema": "rin.log/1",
        "checkpoint": name,
        "snapshots": [
            {
                "number": commit.number,
                "tree": commit.tree,
                "time": commit.time,
                "rows": commit.rows,
                "slots": commit.slots,
                "merged": commit.merged,
                "lost": len(commit.lost),
                "writer": commit.writer,
            }
            for commit in commits
        ],
    }
