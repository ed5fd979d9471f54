"""The command `inspect`: what is in a file."""

from __future__ import annotations

import argparse

from kabuki_rlds.cli.terminal import Commands, Parser
from kabuki_rlds.commands.inspect import inspect, to_text
from kabuki_rlds.formats.demos import registry


def add(commands: Commands, common: Parser) -> None:
    """Adds the command, with all that it takes."""
    command = commands.add_parser(
        "inspect",
        parents=[common],
        help="what is in a file",
        epilog="Example: kabuki-rlds inspect hopper.hdf5 --json | jq .returns.mean",
        description="Prints the fields, episodes, lengths, returns and endings of a file, its size and its sources.",
    )
    command.add_argument("file", metavar="FILE", help="a Kabuki HDF5 file")
    command.add_argument("--split", help="a part of the file, like train[17:18] or train[:10%%] (default: all of it)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and returns the exit code."""
    registry.check_is_not_demos(arguments.file)
    summary = inspect(arguments.file, split=arguments.split)
    print(summary.to_json() if arguments.json else to_text(summary))
    return 0
