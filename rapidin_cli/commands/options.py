"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli.commands import completion

Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Names from rin.toml. Default: all of them.",
        autocompletion=completion.checkpoints,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Name from rin.toml. Default: the last one.",
        autocompletion=completion.checkpoints,
    ),
]
Remote = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Work on this remote instead of the project's own store.",
        autocompletion=completion.remotes,
    ),
]
Devices = Annotated[
    str, typer.Option(metavar="LIST", help="auto, cpu, or a list such as cuda:0,cuda:1.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda:N.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes on a CPU. They share its cores."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip rows that cannot be used, instead of stopping.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write one offline HTML file.")]
Span = Annotated[
    str,
    typer.Option(metavar="N[:M]", help="Rank by one token of the response, or a span of tokens."),
]
