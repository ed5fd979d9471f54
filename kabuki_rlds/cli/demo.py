"""The command `demo`: records an environment, then converts, validates, inspects and reads the dataset."""

from __future__ import annotations

import argparse

from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `demo` and its arguments to the parser."""
    command = commands.add_parser(
        "demo",
        parents=[common],
        help="record a real environment, then convert, validate, inspect and read the dataset",
        description="Records about 20,000 steps of Gymnasium's MuJoCo Hopper as an RLDS dataset (with EnvLogger if it "
        "is installed), converts it to HDF5, validates and inspects the file, and reads it with plain h5py.",
    )
    command.add_argument(
        "dir", metavar="DIR", nargs="?", default="kabuki-demo", help="folder to create (default: kabuki-demo)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import_tensorflow()
    from kabuki_rlds.commands import demo

    demo.run(arguments.dir)
    return 0
