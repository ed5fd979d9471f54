"""The command `demo`: record, convert, validate, inspect, and read back."""

from __future__ import annotations

import argparse

from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow


def add(commands: Commands, common: Parser) -> None:
    """Adds the command, with all that it takes."""
    command = commands.add_parser(
        "demo",
        parents=[common],
        help="record a real environment, convert, validate, inspect, and read it back",
        description="Records about 20,000 steps of Gymnasium's MuJoCo Hopper as an RLDS dataset (with EnvLogger, "
        "where that is installed), converts it to HDF5, validates and inspects the file, and reads it with plain h5py.",
    )
    command.add_argument(
        "dir", metavar="DIR", nargs="?", default="kabuki-demo", help="folder to make (default: kabuki-demo)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and returns the exit code."""
    import_tensorflow()
    from kabuki_rlds.commands import demo

    demo.run(arguments.dir)
    return 0
