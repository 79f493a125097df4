"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from rapidin_cli.commands.adding import arg, opt, switch

Checkpoints = Annotated[
    list[str] | None, arg("CHECKPOINT", "Names from rin.toml. Default: all of them.")
]
Checkpoint = Annotated[str, opt("CHECKPOINT", "Name from rin.toml. Default: the last one.")]
Remote = Annotated[str, opt("REMOTE", "Work on this remote instead of the project's own store.")]
Devices = Annotated[str, opt("LIST", "auto, cpu, or a list such as cuda:0,cuda:1.")]
Device = Annotated[str, opt("DEVICE", "auto, cpu or cuda:N.")]
Workers = Annotated[int | None, opt("N", "Processes on a CPU. They share its cores.", min=1)]
SkipBad = Annotated[
    bool, switch("Skip rows that cannot be used, instead of stopping.", "--skip-bad")
]
AsJson = Annotated[bool, switch("Print JSON.", "--json")]
Html = Annotated[Path | None, opt("FILE", "Write one offline HTML file.")]
Span = Annotated[str, opt("N[:M]", "Rank by one token of the response, or a span of tokens.")]
