"""Ends the process at the second Ctrl-C or SIGTERM.

The first signal ends a command in an orderly way, but only when the main thread runs Python code and holds no lock (see
`files.signals`). A call of a library can take very long. So a thread watches for signals, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

from kabuki_rlds.files.signals import SAME_SECONDS


@contextlib.contextmanager
def ends_process() -> Iterator[None]:
    """Within the block, a second signal ends the process at once, with the exit status 128 + its number.

    The operating system releases the locks of the process. Partial output is left, and the next run replaces it.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    threading.Thread(target=_watch, args=[receiver], name="kabuki-signals", daemon=True).start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        # The thread then ends.
        sender.close()


def _watch(receiver: socket.socket) -> None:
    first = None
    with receiver:
        while number := receiver.recv(1):
            # Other signals that Python handles, for example SIGCHLD, are received too.
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            first = time.monotonic() if first is None else first
            if time.monotonic() - first > SAME_SECONDS:
                os._exit(128 + number[0])
