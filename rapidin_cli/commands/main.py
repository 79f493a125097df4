"""The `rin` command: global options, and errors into sentences and exit codes.

Start-up imports neither torch nor zarr nor s3fs (a test sees to it): command modules import
what they need inside their functions.
"""

import atexit
import gc
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from rapidin_cli.commands import (
    cache,
    curvature,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    init,
    remote,
    report,
    retrieve,
    show,
    status,
    store,
    transfer,
)
from rapidin_cli.commands.adding import Group, add, add_group, opt, switch
from rapidin_cli.errors import ExitCode, RinError, UsageError
from rapidin_cli.output import console
from rapidin_cli.output.version import __version__

app = typer.Typer(
    name="rin",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which training examples, and which words in them, made a language model say that?",
)


@dataclass(frozen=True)
class Global:
    """Options before the command."""

    directory: Path


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; finished work has been committed."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rin {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    directory: Annotated[Path, opt("FOLDER", "Work in this folder.", "--directory", "-C")] = Path(),
    debug: Annotated[bool, switch("Show the traceback of an error.", "--debug")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Handle the options before the command."""
    del debug, version  # `main` looks for --debug itself: errors may come before this runs
    try:
        os.chdir(directory)
    except OSError as error:
        raise UsageError(
            f"cannot work in {directory}: {error.strerror}", hint="give -C an existing folder"
        ) from None
    context.obj = Global(Path.cwd())


# In the order in which `rin --help` lists them.
add(app, "Start", [init.init, cache.cache, curvature.curvature, demo.demo])
add(app, "Ask", [retrieve.retrieve, report.report, show.show, diff.diff])
add(app, "Act", [export.export])
add_group(
    app,
    "Act",
    "evaluate",
    "Measure how good the scores are on this model and data.",
    [evaluate.retrieval, evaluate.lds, evaluate.counterfactual, evaluate.unlearn],
)
add(app, "Share", [transfer.push, transfer.pull])
add_group(
    app,
    "Share",
    "remote",
    "List, add and remove the places where caches are shared.",
    [remote.add, remote.list_, remote.remove],
)
add(app, "Maintain", [status.status, store.log, store.verify, store.gc, doctor.doctor])


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    for each in _SIGNALS:
        signal.signal(each, _leave)
    raise Interrupted


def _leave(number: int, frame: FrameType | None) -> None:
    """A second signal: exit at once. The store is consistent at any instant."""
    del number, frame
    os._exit(int(ExitCode.INTERRUPTED))


def main() -> None:
    """Run the command line; every error becomes one sentence and an exit code."""
    # Else the interpreter looks for circles among all that torch is, to give back what ends anyway.
    atexit.register(gc.freeze)
    for each in _SIGNALS:
        signal.signal(each, _interrupt)
    try:
        app(prog_name="rin")
    except Interrupted:
        _tell(RinError("interrupted; what was finished is kept"))
        sys.stdout.flush()
        # The interpreter would wait for threads whose requests may take minutes to give up.
        os._exit(int(ExitCode.INTERRUPTED))
    except RinError as error:
        _fail(error, error.exit_code)
    except Exception as error:  # whatever it is, the user gets a sentence
        from rapidin_cli.output.sentences import translated

        problem, code = translated(error)
        _fail(problem, code)


def _fail(problem: RinError, code: ExitCode) -> None:
    _tell(problem)
    sys.exit(int(code))


def _tell(problem: RinError) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    console.error(problem)
