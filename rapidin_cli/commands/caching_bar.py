"""What `rin cache` shows while it works: a bar for each checkpoint in turn, and a few lines."""

from __future__ import annotations

from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from rapidin_cli.gradients.capture import Skipped
from rapidin_cli.output import console
from rapidin_cli.work.caching import CachingProgress
from rapidin_cli.work.worker import Ready


class CachingBars:
    """Makes the bars."""

    def __enter__(self) -> Self:
        self._open = console.progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bars = self._open.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._open.__exit__(*details)  # type: ignore[arg-type]

    def __call__(self, checkpoint: str) -> CachingBar:
        """Return the bar of a checkpoint."""
        return CachingBar(self._bars, checkpoint)


class CachingBar(CachingProgress):
    """One checkpoint's."""

    def __init__(self, bars: Progress, checkpoint: str) -> None:
        self._bars = bars
        self._checkpoint = checkpoint
        self._tokens = 0
        self._task: TaskID | None = None

    def start(self, rows: int, tokens: int) -> None:
        """See `CachingProgress`."""
        console.say(f"{self._checkpoint}: {rows:,} rows to compute, {tokens:,} tokens")
        self._task = self._bars.add_task(self._checkpoint, total=rows, rate="loading the model")

    def ready(self, ready: Ready) -> None:
        """See `CachingProgress`."""
        layout = ready.layout
        console.say(
            f"{self._checkpoint}: gradients of {len(layout.layers):,} layers, "
            f"{layout.parameters:,} parameters, into {layout.dimensions:,} numbers "
            f"({layout.spec.precision})"
        )
        trained = layout.parameters + sum(skipped.size for skipped in ready.skipped)
        reasons: dict[str, list[Skipped]] = {}
        for skipped in ready.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped)
        for reason, parts in reasons.items():
            more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
            share = sum(part.size for part in parts) / trained
            console.say(
                f"{self._checkpoint}: {share:.1%} of the trained parameters not captured "
                f"({reason}): {parts[0].name}{more}"
            )

    def advance(self, rows: int, tokens: int, device: str) -> None:
        """See `CachingProgress`."""
        del device
        assert self._task is not None
        self._tokens += tokens
        self._bars.update(self._task, advance=rows)
        elapsed = self._bars.tasks[self._task].elapsed or 0
        if elapsed > 0:
            self._bars.update(self._task, rate=f"{self._tokens / elapsed:,.0f} tokens/s")
