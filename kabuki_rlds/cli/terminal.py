"""What all commands share: how they are called, and what reaches the terminal."""

from __future__ import annotations

import argparse
import logging
import os
import sys
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


def import_tensorflow() -> None:
    """Imports TensorFlow and TFDS without their start-up messages. Where one is missing, whatever needs it says so."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Some of it comes from C++ before any log level counts, so the file descriptor is turned away.
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        import tensorflow as tf
        import tensorflow_datasets  # noqa: F401

        tf.get_logger().setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
    except ImportError:
        pass
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
