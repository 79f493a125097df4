"""What `rin cache` shows while it works: a bar for each checkpoint in turn, and a few lines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rapidin_cli.output import console
from rapidin_cli.work.caching import CachingProgress

if TYPE_CHECKING:
    from rapidin_cli.gradients.capture.target import Skipped
    from rapidin_cli.output.stages import Stages
    from rapidin_cli.work.worker import Ready


class CachingBar(CachingProgress):
    """One checkpoint's."""

    def __init__(self, shown: Stages, checkpoint: str) -> None:
        self._shown = shown
        self._checkpoint = checkpoint
        self._shown(f"{checkpoint}: reading the data")

    def fetching(self, remote: str) -> None:
        """See `CachingProgress`."""
        self._shown(f"{self._checkpoint}: looking for rows on {remote}")

    def start(self, rows: int, tokens: int) -> None:
        """See `CachingProgress`."""
        console.say(f"{self._checkpoint}: {rows:,} rows to compute, {tokens:,} tokens")
        self._rows, self._tokens = (0, rows), (0, tokens)
        self._shown(f"{self._checkpoint}: loading the model")

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
        self._begun = time.monotonic()
        self._show(ready.token_seconds)

    def advance(self, rows: int, tokens: int, device: str) -> None:
        """See `CachingProgress`."""
        del device
        self._rows = (self._rows[0] + rows, self._rows[1])
        self._tokens = (self._tokens[0] + tokens, self._tokens[1])
        self._show()

    def _show(self, expected: float = 0.0) -> None:
        elapsed, tokens = time.monotonic() - self._begun, self._tokens[0]
        rate = f"{tokens / elapsed:,.0f} tokens/s" if tokens and elapsed else ""
        # Long rows come first: time is told from tokens.
        self._shown(
            f"{self._checkpoint}: rows",
            *self._rows,
            work=self._tokens,
            expected=expected,
            note=rate,
        )
