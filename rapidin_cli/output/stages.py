"""Stages of long work: a bar with the time left on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rapidin_cli.output.amounts import duration
from rapidin_cli.output.sanitise import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

StageProgress = Callable[[str, int, int], None]
"""Called with (what is done, how much of it, of how much); a total of 0 is not known."""

PLAIN_SECONDS = 30.0
"""Between two lines where there is no terminal."""

# The time left is told from what was done in this time, seconds, and from three reports at least.
_REMEMBERED = 120.0
_A_SECOND = 8  # refreshes
_BAR = 10, 40  # columns, at least and at most
_LABEL = 18  # columns that a label keeps
_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"


def plain_number(number: int) -> str:
    """Return `12,345`."""
    return f"{number:,}"


@dataclass
class Stage:
    """How far one stage is, and how long the rest of it will take.

    Attributes:
        what: its label.
        begun: when it began, in seconds of a clock.
        done, total: what is counted; a total of 0 is not known.
        work, whole: the same in units that cost the same, from which time is told.
        expected: seconds for a unit of work, as long as nothing was measured.
        note: more about it, such as a rate.
        written: writes numbers.
    """

    what: str
    begun: float
    done: int = 0
    total: int = 0
    work: int = 0
    whole: int = 0
    expected: float = 0.0
    note: str = ""
    written: Callable[[int], str] = plain_number
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def reach(self, done: int, total: int, now: float, work: tuple[int, int] | None) -> None:
        """Take a report: (done, whole) work is told apart where rows do not cost the same."""
        if done < self.done or bool(total) != bool(self.total):  # the same again, or first counted
            self._seen.clear()
            self.begun = now
        self.done, self.total = done, total
        self.work, self.whole = work or (done, total)
        if not self._seen or self.work > self._seen[-1][1]:
            self._seen.append((now, self.work))
        while len(self._seen) > 3 and self._seen[1][0] < now - _REMEMBERED:
            self._seen.popleft()

    @property
    def finishing(self) -> bool:
        """Whether everything is counted, and the stage is not over yet."""
        return 0 < self.total <= self.done

    def left(self, now: float) -> float | None:
        """Return the seconds that are left, if that can be told."""
        rest = self.whole - self.work
        if not self.total or rest <= 0:
            return None
        (first, before), (last, work) = self._seen[0], self._seen[-1]
        if work == before:
            waited = now - first
            return max(1.0, rest * self.expected - waited) if self.expected else None
        usual = (last - first) / (len(self._seen) - 1)
        if now - last > 2 * usual:  # slower than before
            return rest * (now - first) / (work - before)
        return max(1.0, rest * (last - first) / (work - before) - (now - last))

    @property
    def counted(self) -> str:
        """`12/40`; what is done alone if nobody knows the total."""
        if self.total:
            return f"{self.written(self.done)}/{self.written(self.total)}"
        return self.written(self.done) if self.done else ""

    def remaining(self, now: float) -> str:
        """`3 min left`, or what there is to say in its place."""
        if self.finishing:
            return "finishing"
        left = self.left(now)
        if left is not None:
            return f"{duration(left)} left"
        return "" if self.total or now - self.begun < 1 else duration(now - self.begun)

    def sentence(self, now: float) -> str:
        """A line of a file: `rows: 12/40, 3 min left`."""
        told = ", ".join(part for part in (self.counted, self.note, self.remaining(now)) if part)
        return f"{self.what}: {told}" if told else f"{self.what} ..."


class Stages:
    """Shows one stage after the other; call it to say how far the work is.

    Args:
        console: where; what else is printed there meanwhile must go through it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._stage: Stage | None = None
        self._known: dict[str, Stage] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._live = console.is_terminal and not console.is_dumb_terminal

    def __enter__(self) -> Self:
        if self._live:
            from rich.live import Live

            self._shown = Live(
                get_renderable=lambda: _Line(self._stage),
                console=self.console,
                transient=True,
                refresh_per_second=_A_SECOND,
                redirect_stdout=False,
            )
            self._shown.start(refresh=True)
        else:
            self._teller = threading.Thread(target=self._tell_at_times, daemon=True)
            self._teller.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        if self._live:
            self._stage = None
            self._shown.stop()
        else:
            self._teller.join(1)

    def __call__(
        self,
        what: str,
        done: int = 0,
        total: int | None = 0,
        *,
        work: tuple[int, int] | None = None,
        expected: float = 0.0,
        note: str = "",
        written: Callable[[int], str] = plain_number,
    ) -> None:
        """Say how far the work is; another `what` is another stage.

        Args:
            what: the stage.
            done, total: 0 or None as the total if nobody knows it.
            work, expected, note, written: see `Stage`.
        """
        now = time.monotonic()
        with self._lock:
            stage = self._known.get(what)
            new = stage is None
            if stage is None:
                stage = self._known[what] = Stage(visible(what), now)
            changed = stage is not self._stage
            stage.reach(done, total or 0, now, work)
            stage.expected = expected or stage.expected
            stage.note, stage.written = note, written
            self._stage = stage
        if self._live and changed:
            self._shown.refresh()
        elif not self._live and new:
            self._print(f"{stage.what} ...")

    def _tell_at_times(self) -> None:
        while not self._over.wait(PLAIN_SECONDS):
            with self._lock:
                told = self._stage and self._stage.sentence(time.monotonic())
            if told:
                self._print(told)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


class _Line:
    """A stage on one line of the terminal, whatever its width."""

    def __init__(self, stage: Stage | None) -> None:
        self._stage = stage

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        if self._stage is None:
            yield Text("")
            return
        # The last column stays free: some terminals go to the next line there.
        yield _drawn(self._stage, options.max_width - 1, time.monotonic(), options.ascii_only)


def _drawn(stage: Stage, width: int, now: float, ascii_only: bool) -> Text:
    """Return label, bar, numbers and the time left; what does not fit is left out or cut."""
    from rich.text import Text

    counted = bool(stage.total) and not stage.finishing
    frames = _ASCII_SPINNER if ascii_only else _SPINNER
    head = "" if counted else f"{frames[int(now * _A_SECOND) % len(frames)]} "
    percent = f"{min(99, 100 * stage.work // max(1, stage.whole))}%" if counted else ""
    # In the order in which they are dropped, if not even a short label fits beside them.
    parts = [percent, stage.counted, stage.note, stage.remaining(now)]
    whole = Text(head + stage.what).cell_len
    for drop, least in ((2, whole), (0, min(whole, _LABEL)), (1, min(whole, _LABEL))):
        if least + _cells(parts) <= width:
            break
        parts[drop] = ""
    label = _cut(head, stage.what, width - _cells(parts), "" if ascii_only else "…")
    room = min(_BAR[1], width - label.cell_len - _cells(parts) - 2)
    line = label
    if counted and room >= _BAR[0]:
        full = min(room - 1, room * stage.work // max(1, stage.whole))
        filled, empty = ("=", "-") if ascii_only else ("━", "─")
        line.append("  ").append(filled * full, "green").append(empty * (room - full), "dim")
    for part in filter(None, parts):
        line.append(f"  {part}")
    line.truncate(width, overflow="crop")
    line.no_wrap = True
    return line


def _cut(head: str, what: str, width: int, mark: str) -> Text:
    """Return a label that fits: of `NAME: STAGE` the name is cut, as long as that is enough."""
    from rich.text import Text

    label = Text(head + what)
    name, colon, stage = what.rpartition(": ")
    rest = Text(colon + stage)
    over = label.cell_len - width
    if over > 0 and name and Text(head + mark).cell_len + rest.cell_len < width:
        label = Text(head + name)
        label.truncate(width - rest.cell_len - len(mark), overflow="crop")
        return label.append(mark).append_text(rest)
    if over > 0:
        label.truncate(max(1, width - len(mark)), overflow="crop")
        label.append(mark)
    return label


def _cells(parts: list[str]) -> int:
    return sum(len(part) + 2 for part in parts if part)
