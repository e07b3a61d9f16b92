"""Ctrl-C and SIGTERM during a sweep."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM let Tune save its state and end, and set the event; a second one ends at once.

    Both are handed to Tune as SIGUSR1, which it takes for an interrupt too: its own handler of Ctrl-C does not tell.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        os.kill(os.getpid(), signal.SIGUSR1)

    def end(number: int, frame: object) -> None:  # until Tune is there
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGUSR1: end}
    before = {number: signal.getsignal(number) for number in handlers}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield interrupted
    finally:
        for number, known in before.items():
            signal.signal(number, known)
        del os.environ["TUNE_DISABLE_SIGINT_HANDLER"]
