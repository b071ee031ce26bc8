"""SIGTERM and SIGINT as a wish to stop at the next step."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger("grw_keras")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Meanwhile SIGTERM and the first SIGINT are noted, and the function given says so.

    A second SIGINT interrupts as ever. Outside the main thread, which alone gets signals, none is
    ever noted.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def note(number, frame):
        del frame
        if seen.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.warning("%s: saving after this step", signal.Signals(number).name)
        seen.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
