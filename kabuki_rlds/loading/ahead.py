"""Computes the items of an iterator in a background thread, one item ahead of the caller.

The garbage collector can close an abandoned generator in any thread and at any time: within a call of the HDF5 library,
for example, or within the background thread itself. Waiting for a thread or for a lock there can block forever. So
closing only puts a message into a queue, and the background thread closes the files.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Generator
from typing import Any, TypeVar

_T = TypeVar("_T")

#: Requests to a thread: True to compute the next item, False to end.
_Requests = queue.SimpleQueue[bool]
_END: Any = object()

#: The running threads.
_threads: weakref.WeakKeyDictionary[threading.Thread, _Requests] = weakref.WeakKeyDictionary()


def ahead(items: Generator[_T, None, None], *, wait: bool = False) -> Generator[_T, None, None]:
    """Yields the same items, but computes the next one in a thread while the caller uses the current one.

    Args:
      items: closed by the thread when the result is closed, or garbage-collected.
      wait: whether `close` waits until `items` is closed. Only for a caller that always closes the result itself.
    """
    requests: _Requests = queue.SimpleQueue()
    # `SimpleQueue.put` may be called by the garbage collector, unlike `Executor.submit`, which needs a lock.
    made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    thread = threading.Thread(target=_make, args=(items, requests, made), name="kabuki-ahead", daemon=True)
    _threads[thread] = requests
    thread.start()
    error = None
    try:
        requests.put(True)
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            requests.put(True)
            yield item
    finally:
        requests.put(False)
        if wait:
            thread.join()
        # Otherwise this frame and the traceback of the error would refer to each other.
        del error


def _make(items: Generator[Any, None, None], requests: _Requests, made: queue.SimpleQueue[Any]) -> None:
    while requests.get():
        try:
            made.put((next(items, _END), None))
        except BaseException as e:
            made.put((None, e))
    items.close()


@atexit.register
def _end_threads() -> None:
    """Ends the threads before the interpreter and the HDF5 library are torn down."""
    running = list(_threads.items())
    for _, requests in running:
        requests.put(False)
    for thread, _ in running:
        thread.join()
