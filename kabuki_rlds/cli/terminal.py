"""The argument parser and the terminal output that all commands share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import NoReturn, TypeAlias

PROG = "kabuki-rlds"


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors on one line."""

    def error(self, message: str) -> NoReturn:
        """Prints a usage error and exits with 2."""
        print(f"{PROG}: error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


#: The subparsers to which each command adds its own parser.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def import_tensorflow() -> None:
    """Imports TensorFlow and TFDS without their start-up messages.

    A missing package is ignored here. The code that needs it reports it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # C++ code prints some messages before any log level applies, so the file descriptor is redirected.
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
