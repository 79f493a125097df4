"""The checkpoints that are asked; one model is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rapidin_cli.influence.loaded_checkpoint import LoadedCheckpoint, PreparedQuery
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Query


class Panel:
    """The checkpoints that are asked, with their weights; the last one loaded is kept.

    Args:
        openers: load a checkpoint, in the order of training; all read the same data.
        weights: factors of their scores.
    """

    def __init__(
        self, openers: Sequence[Callable[[], LoadedCheckpoint]], weights: Sequence[float]
    ) -> None:
        self._openers = openers
        self.weights = weights
        self._at: tuple[int, LoadedCheckpoint] | None = None
        self._asked: dict[int, tuple[Query, PreparedQuery]] = {}

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, number: int) -> LoadedCheckpoint:
        """Return a loaded checkpoint, loading it unless it is the current one."""
        number %= len(self)
        if self._at is None or self._at[0] != number:
            self.forget()
            self._at = None  # one model at a time
            self._at = number, self._openers[number]()
        return self._at[1]

    def each(self) -> Iterator[tuple[float, LoadedCheckpoint]]:
        """Yield (weight, loaded), the last checkpoint last."""
        for number, weight in enumerate(self.weights):
            yield weight, self.at(number)

    def asked(self, query: Query, options: Options) -> PreparedQuery:
        """Return a query prepared for the current checkpoint, made once for as long as it stays."""
        if id(query) not in self._asked:
            assert self._at is not None
            self._asked[id(query)] = query, self._at[1].ask(query, options)
        return self._asked[id(query)][1]

    def forget(self) -> None:
        """Drop the queries that were prepared: their gradients take memory."""
        self._asked.clear()

    def drop(self, query: Query) -> None:
        """Drop one of them."""
        self._asked.pop(id(query), None)
