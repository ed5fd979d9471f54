"""Runs a command. An error becomes a one-line message and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from kabuki_rlds.arguments import named_as_flags
from kabuki_rlds.cli import build, convert, demo, export, inspect, recipe, second_signal, validate
from kabuki_rlds.cli.terminal import PROG, Parser
from kabuki_rlds.errors import KabukiError, printable
from kabuki_rlds.version import VERSION

#: In the order in which --help lists them.
_COMMANDS = (convert, build, export, validate, inspect, recipe, demo)


class _Terminated(BaseException):
    """Raised on SIGTERM, so that partial output is removed, as after Ctrl-C."""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{PROG}: {level}{printable(record.getMessage())}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      0 on success, 1 on failure. Wrong usage exits with 2.
    """
    _open_streams()
    # TensorFlow is imported only when needed, for example to decode the images of an HDF5 file.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("kabuki_rlds")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING if getattr(arguments, "quiet", False) else logging.INFO)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        with named_as_flags(), second_signal.ends_process():
            result: int = arguments.run(arguments)
        sys.stdout.flush()
        return result
    except KabukiError as e:
        return _failed(str(e), arguments)
    except (KeyboardInterrupt, _Terminated):
        if getattr(arguments, "resume", False):
            return _failed("interrupted; run the same command again to resume", arguments)
        writes = arguments.run in (convert.run, build.run, export.run)
        return _failed("interrupted" + ("; nothing was written" if writes else ""), arguments)
    except BrokenPipeError:
        # The process that reads stdout, for example `head`, closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _failed("out of memory; nothing was written", arguments)
    except OSError as e:
        return _failed(f"{e.filename or 'the system'}: {e.strerror or e}", arguments)
    except Exception as e:
        lines = str(e).strip().splitlines()
        what = f"{type(e).__name__}: {printable(lines[0])}" if lines else type(e).__name__
        return _failed(f"{what}; this is a bug, --debug shows the traceback", arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _failed(message: str, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"{PROG}: error: {printable(message)}", file=sys.stderr)
    return 1


def _open_streams() -> None:
    """Opens closed standard streams on /dev/null. Otherwise the next opened file gets the descriptor of stdout."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # `open` returns the lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
    # Python sets the stream of a closed descriptor to None.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = Parser(
        prog=PROG,
        description="Converts offline-RL datasets between RLDS and HDF5 (the Kabuki format).",
        epilog=f"{PROG} COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in _COMMANDS:
        command.add(commands, common)
    return parser
