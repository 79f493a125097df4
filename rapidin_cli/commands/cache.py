"""`rin cache`: sketch every training example's gradient."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli.commands.adding import opt, project_of, switch
from rapidin_cli.commands.options import Checkpoints, Devices, SkipBad, Workers
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console
from rapidin_cli.output.console import duration, size

if TYPE_CHECKING:
    from rapidin_cli.api import Project
    from rapidin_cli.data.examples import Dataset
    from rapidin_cli.output.stages import Stages
    from rapidin_cli.work.caching import Part
    from rapidin_cli.work.forecast import Forecast
    from rapidin_cli.workspace.runs import Cached


Root = Annotated[
    str, opt("PLACE", "Write to this remote, URL or folder instead of \\[storage] root.")
]
DryRun = Annotated[bool, switch("Say what it would cost, and stop.", "--dry-run")]
Share = Annotated[str, opt("I/N", "Do one share of the rows, in a job array.")]
Executor = Annotated[str, opt("WHERE", "local, or ray: workers on the Ray cluster of RAY_ADDRESS.")]
Fetch = Annotated[bool, switch("Fetch rows that a remote already has.", "--pull/--no-pull")]


def cache(
    context: typer.Context,
    checkpoints: Checkpoints = None,
    devices: Devices = "auto",
    workers: Workers = None,
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    root: Root = "",
    part: Share = "1/1",
    executor: Executor = "local",
    fetch: Fetch = True,
) -> None:
    """Sketch the gradient of every training example, once per checkpoint.

    Only rows that are not cached yet are computed. You can interrupt it, kill it and run it
    again at any time: at most the work since the last commit (30 s) is repeated.

    Examples:
        rin cache --dry-run
        rin cache
        rin cache checkpoint-300 --devices cuda:0,cuda:1
    """
    names = checkpoints or []
    with console.stages() as shown:
        # At once: what follows imports for a second.
        told = "estimating the cost" if dry_run else "caching"
        shown(f"{told}: reading rin.toml and checkpoints")
        project = project_of(context, root)
        share = _share(project, part)
        if dry_run:
            _dry_run(project, names, devices, workers, skip_bad, share, executor, shown)
            return
        from rapidin_cli.commands.caching_bar import CachingBar

        done = project.cache(
            names,
            devices=devices,
            workers=workers,
            skip_bad=skip_bad,
            part=share,
            fetch=fetch,
            executor=executor,
            tell=console.say,
            progress=partial(CachingBar, shown),
        )
    from rapidin_cli.commands.next_question import OWN_WORDS, first_question
    from rapidin_cli.work.caching import WHOLE

    for result in done:
        console.say(_summary(result))
    if done:
        _name_left_out(done[-1].dataset)
    if share != WHOLE:
        console.say("next: rin cache, once all parts have finished: it updates rin.lock")
        return
    console.say(f"next: {first_question(project, names)}")
    console.say(OWN_WORDS)


def _dry_run(
    project: Project,
    names: list[str],
    devices: str,
    workers: int | None,
    skip_bad: bool,
    share: Part,
    executor: str,
    shown: Stages,
) -> None:
    from rapidin_cli.commands.next_question import first_question
    from rapidin_cli.work.pools import RAY, check_executor

    check_executor(executor, devices)
    if executor == RAY:
        console.say("estimated for one process on this machine, without asking the cluster")
        workers = 1
    rows = 0
    for found in project.forecast(
        names, devices=devices, workers=workers, skip_bad=skip_bad, part=share, progress=shown
    ):
        console.say(_forecast(found))
        rows += found.rows
    same = shlex.join(["rin", *(word for word in sys.argv[1:] if word != "--dry-run")])
    console.say(f"next: {same if rows else first_question(project, names)}")


def _share(project: Project, text: str) -> Part:
    """Read I/N."""
    from rapidin_cli.work.caching import WHOLE

    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--part {text} is not a share such as 3/16", hint="rin cache --part 1/2")
    share = int(number), int(count)
    if share != WHOLE and getattr(project.places.store, "single_writer", False):
        raise UsageError(
            f"{project.places.store} allows a single writer, and --part needs several",
            hint="cache into local folders, then rin push them one after the other",
        )
    return share


def _forecast(found: Forecast) -> str:
    text = f"{found.checkpoint}: {found.rows:,} rows to compute ({found.present:,} cached)"
    if not found.rows:
        return text
    memory = f"{size(found.memory_bytes)} of memory per process"
    if found.device_bytes:
        memory += f" and {size(found.device_bytes)} of GPU memory"
    return (
        f"{text}, {found.tokens:,} tokens: about {duration(found.seconds)}, "
        f"{size(found.store_bytes)} in the store, {memory}"
    )


def _name_left_out(dataset: Dataset) -> None:
    for bad in dataset.unusable:
        console.warn(f"skipped {bad}")
    if dropped := dataset.dropped:
        rows = console.count(len(dropped), "row")
        console.warn(f"left out {rows}, as in training; the first is {dropped[0]}")


def _summary(result: Cached) -> str:
    commit, dataset = result.snapshot.commit, result.dataset
    repeats = len(dataset.examples) - len(dataset.by_digest)
    parts = [f"{result.checkpoint}: {result.computed:,} rows computed, {commit.rows:,} cached"]
    if repeats:
        parts.append(console.count(repeats, "duplicate"))
    if dataset.truncated:
        parts.append(f"{dataset.truncated:,} rows cut at max_tokens")
    parts.append(f"snapshot {commit.number}")
    return ", ".join(parts)
