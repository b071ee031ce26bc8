"""Calls of a function in worker processes, whose results come back in order."""

import collections
import contextlib
import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import cv2
import loky
from loky.process_executor import ShutdownExecutorError, TerminatedWorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Calls under way or done for each worker: enough that none waits for a slower neighbour.
AHEAD = 4
_NAMED = 20  # items in an error's message
_WATCH_S = 0.5
_PIPE_BYTES = 1 << 20  # the usual limit for unprivileged users


class WorkerDiedError(RuntimeError):
    """A worker process crashed or was killed in the middle of its work."""


def default_workers() -> int:
    """One process for each CPU that this process may use, containers' quotas considered."""
    return loky.cpu_count()


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    ahead: int | None = None,
    name: Callable[[Item], str] = repr,
) -> Iterator[Result]:
    """`map(function, items)`, run in `workers` processes a few items ahead of who takes them.

    `items` may be endless. Processes are started anew and imported from scratch, so they inherit
    no threads or devices, and scripts need no `if __name__ == "__main__"`. They end when the
    iterator is closed or dropped, and when this process dies, however it does; Ctrl-C and SIGTERM
    are left to this process.

    Args:
        function: picklable; sent to each worker once.
        items: picklable, small.
        workers: processes; 0: calls in this process, none ahead.
        ahead: calls started before their results are taken; default `AHEAD` for each worker.
        name: what an error calls an item.

    Raises:
        What `function` raises.
        ValueError: `workers` is negative.
        WorkerDiedError: a worker was killed or crashed; names the items that it may have been at.
    """
    if workers < 0:
        raise ValueError(f"`workers` must be >= 0. Received: {workers}")
    if workers == 0:
        yield from map(function, items)
        return
    executor = loky.ProcessPoolExecutor(
        max_workers=workers, initializer=_set_up, initargs=(function, os.getpid())
    )
    _widen(executor)
    pending: collections.deque = collections.deque()
    try:
        for item in items:
            pending.append((item, executor.submit(_call, item)))
            if len(pending) >= (AHEAD * workers if ahead is None else ahead):
                yield pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][1].result()
            pending.popleft()
    except ShutdownExecutorError:
        return  # this process is ending, and reads no more
    except TerminatedWorkerError as error:
        lost = [name(item) for item, future in pending if _is_lost(future)]
        raise WorkerDiedError(_message(lost, str(error))) from error
    finally:
        executor.shutdown(wait=False, kill_workers=True)


def _widen(executor) -> None:
    """Results are clips of a megabyte: a pipe of 64 kB would change sides at every 64 kB of them,
    which costs as much as a tenth of decoding."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with contextlib.suppress(OSError):  # more than the system allows
            fcntl.fcntl(executor._result_queue._reader.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _is_lost(future) -> bool:
    return not future.done() or isinstance(future.exception(), TerminatedWorkerError)


def _message(lost: list[str], cause: str) -> str:
    codes = re.search(r"\{.*\}", cause)
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return (
        f"A worker process died ({codes[0] if codes else cause}) at one of "
        f"{', '.join(lost[:_NAMED]) or 'its first items'}{more}. After SIGKILL, memory ran out: "
        "use fewer workers. After SIGSEGV or SIGABRT, one of these files breaks the decoder: take "
        "it out of the data; with workers=1 it is the first one named."
    )


_function: Callable[[Any], Any]


def _set_up(function, parent: int) -> None:
    global _function
    _function = function
    # They go to the whole process group. The parent saves and ends in order, reading until then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)  # there is a process for each CPU
    # A parent killed by SIGKILL can't end its workers.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def _call(item):
    return _function(item)
