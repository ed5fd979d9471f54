"""Ctrl-C and SIGTERM, between blocks.

Python raises what a signal's handler raises between any two instructions: also
between taking a lock and entering the block that gives it back. A pool of threads
that needs this lock to end then never does. So long work holds signals back, and
asks for them where it holds nothing.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Calls the handler of each signal that came; None where signals are not held back.
_pending: list[Callable[[], object]] | None = None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within, signals wait for `check`, where what handled them before handles them.

    One that comes after the last `check` comes too late, and is dropped. In threads
    other than the main one, which no signal interrupts, this does nothing.
    """
    global _pending
    if _pending is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Callable[[], object]] = []
    _pending = came
    # Where none of Python handles a signal it is ignored, or ends the process, which needs no lock.
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(lambda: handlers[signal.Signals(number)](number, frame))

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _pending = None


def check() -> None:
    """Handles a signal that was held back. Called between blocks, where no lock is held."""
    if _pending and threading.current_thread() is threading.main_thread():
        _pending.pop(0)()
