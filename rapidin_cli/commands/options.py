"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands import completion

Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        help="Names from rin.toml; all by default.", autocompletion=completion.checkpoints
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        help="Name from rin.toml; the last one by default.", autocompletion=completion.checkpoints
    ),
]
Devices = Annotated[str, typer.Option(help="auto, cpu, or a list such as cuda:0,cuda:1.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes when the device is the CPU; they share its cores."),
]
