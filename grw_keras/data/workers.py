"""Calls of a function in worker processes, whose results come back in order."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import loky

Item = TypeVar("Item")
Result = TypeVar("Result")
# Calls under way or done for each worker: enough that none waits for a slower neighbour.
AHEAD = 4


def default_workers() -> int:
    """One process for each CPU that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    ahead: int | None = None,
) -> Iterator[Result]:
    """`map(function, items)`, run in `workers` processes a few items ahead of who takes them.

    `items` may be endless. Processes are started anew and imported from scratch, so they inherit
    no threads or devices, and scripts need no `if __name__ == "__main__"`.

    Args:
        function: picklable; sent to each worker once.
        items: picklable, small.
        workers: processes; 0: calls in this process, none ahead.
        ahead: calls started before their results are taken; default `AHEAD` for each worker.

    Raises:
        What `function` raises; TerminatedWorkerError (loky) when a worker dies.
    """
    if workers == 0:
        yield from map(function, items)
        return
    executor = loky.ProcessPoolExecutor(
        max_workers=workers, initializer=_set_up, initargs=(function,)
    )
    pending: collections.deque = collections.deque()
    try:
        for item in items:
            pending.append(executor.submit(_call, item))
            if len(pending) >= (AHEAD * workers if ahead is None else ahead):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=False, kill_workers=True)


_function: Callable[[Any], Any]


def _set_up(function) -> None:
    global _function
    _function = function


def _call(item):
    return _function(item)
