"""Delays Ctrl-C and SIGTERM until no lock is held.

Python runs a signal handler between any two instructions. If the handler raises an
exception after a lock was acquired and before the `try` block that releases it, the
lock is never released, and a thread pool that needs it never ends. So long operations
delay signals with `held_back`, and call `check` at points where no lock is held.

A second signal is not delayed. In the command line it ends the process (see `cli.second_signal`). In other programs it
calls their handler; after Ctrl-C that raises `KeyboardInterrupt`, and the process may hang if a lock was held.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Two signals within this time, in seconds, count as one: `timeout` sends SIGTERM to a process and to its group.
SAME_SECONDS = 0.5
#: The time in seconds for which a handler lets other threads run, among them that of `cli.second_signal`.
_PAUSE = 0.02

#: A call of the handler for each delayed signal; None if signals are not delayed.
_pending: list[Callable[[], object]] | None = None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Delays the first signal until `check`, which calls the original handler.

    A signal that arrives after the last `check` is dropped. In threads other than the
    main thread this does nothing, because signals do not interrupt them.
    """
    global _pending
    if _pending is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Callable[[], object]] = []
    first = 0.0
    _pending = came
    # A signal without a Python handler is ignored or ends the process. Neither needs a lock.
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal first
        # Python's regular expressions call signal handlers, but do not let other threads run.
        time.sleep(_PAUSE)
        if not came:
            first = time.monotonic()
        elif time.monotonic() - first > SAME_SECONDS:
            handlers[signal.Signals(number)](number, frame)
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
    """Calls the handler of a delayed signal. Call this between blocks, when no lock is held."""
    if _pending and threading.current_thread() is threading.main_thread():
        _pending.pop(0)()
