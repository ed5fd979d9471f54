"""The command `inspect`: prints a summary of a dataset."""

from __future__ import annotations

import argparse

from kabuki_rlds.cli.source_options import add_reading_options, reading_arguments, rlds_among
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.commands.inspect import inspect, to_text


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `inspect` and its arguments to the parser."""
    command = commands.add_parser(
        "inspect",
        parents=[common],
        help="summarise a dataset of any format",
        epilog="Example: kabuki-rlds inspect hopper.hdf5 --json | jq .returns.mean",
        description="Prints the fields, episode lengths, returns, episode ends, size and sources of a dataset.",
    )
    command.add_argument("source", metavar="SOURCE", help="a Kabuki file or any other source of convert")
    add_reading_options(command)
    command.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if rlds_among([arguments.source], arguments.data_dir):
        import_tensorflow()
    summary = inspect(arguments.source, **reading_arguments(arguments))
    print(summary.to_json() if arguments.json else to_text(summary))
    return 0
