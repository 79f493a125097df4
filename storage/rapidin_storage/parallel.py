"""Many requests at once, within a budget of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

# Small objects wait for the network, large ones for its width: on SeaweedFS here 32 threads
# move 4 KB objects about as fast as more do. More than 64 MB in flight are slower (memory is
# then touched for the first time again and again), and so is a single object at a time.
THREADS = 32
BYTES_IN_FLIGHT = 64 * 2**20
_AT_LEAST = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    size: Callable[[Item], int] = lambda _: 0,
    shared: bool = True,
) -> list[Result]:
    """Do `work` for every item, at once where requests go over a network; results in order.

    After the first error nothing new is begun; it is raised when what had begun has ended.
    An interruption does not wait for that: a request may take minutes to give up.

    Args:
        size: bytes that the work on an item holds in memory.
        shared: whether to use threads at all.
    """
    if not shared:
        return [work(item) for item in items]
    budget = _Budget(BYTES_IN_FLIGHT)
    failed = threading.Event()
    futures: list[Future[Result]] = []
    pool, interrupted = ThreadPoolExecutor(THREADS), False
    try:
        for item in items:
            weight = size(item)
            budget.take(weight)
            if failed.is_set():
                break
            future = pool.submit(work, item)
            future.add_done_callback(partial(_ended, budget, weight, failed))
            futures.append(future)
        wait(futures, return_when=FIRST_EXCEPTION)
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)
    done = [future for future in futures if not future.cancelled()]
    return [future.result() for future in done]


def _ended(budget: _Budget, weight: int, failed: threading.Event, done: Future[Result]) -> None:
    if done.cancelled() or done.exception() is not None:
        failed.set()
    budget.give(weight)


class _Budget:
    """Bytes in flight; two items may exceed it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = self._items = 0
        self._changed = threading.Condition()

    def take(self, weight: int) -> None:
        def fits() -> bool:
            return self._items < _AT_LEAST or self._held + weight <= self._total

        with self._changed:
            self._changed.wait_for(fits)
            self._held += weight
            self._items += 1

    def give(self, weight: int) -> None:
        with self._changed:
            self._held -= weight
            self._items -= 1
            self._changed.notify_all()
