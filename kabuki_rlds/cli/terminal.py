"""What all commands share: how they are called, and what reaches the terminal."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn, TypeAlias

PROG = "kabuki-rlds"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the call."""
        print(f"{PROG}: error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


#: What a command adds itself to.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


@contextlib.contextmanager
def no_chatter() -> Iterator[None]:
    """Keeps what TensorFlow prints when it is imported off the terminal, errors excepted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Some of it comes from C++ before any log level counts, so the file descriptor is turned away.
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        import tensorflow as tf

        tf.get_logger().setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
