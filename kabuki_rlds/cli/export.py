"""The command `export`: writes a dataset in the layout of robomimic, Minari or D4RL."""

from __future__ import annotations

import argparse

from kabuki_rlds.cli import source_options
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.errors import printable


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `export` and its arguments to the parser."""
    command = commands.add_parser(
        "export",
        parents=[common],
        help="write a dataset in the layout of robomimic, Minari or D4RL",
        description="Writes a dataset in the layout of robomimic, Minari or D4RL, for trainers that read it. "
        "If the export fails, no partial file is left.",
        epilog="Example: kabuki-rlds export lift.hdf5 ~/.minari/datasets/lab/lift-v0 --to minari",
    )
    command.add_argument("source", metavar="SOURCE", help="a Kabuki file or any other source of convert")
    command.add_argument("dest", metavar="DEST", help="the HDF5 file to write; for Minari, the folder NAME-vVERSION")
    command.add_argument("--to", choices=["robomimic", "minari", "d4rl"], required=True, help="the layout to write")
    source_options.add_reading_options(command)
    source_options.add_writing_options(command, "DEST")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if source_options.rlds_among([arguments.source], arguments.data_dir):
        import_tensorflow()
    from kabuki_rlds.commands.export import export

    result = export(
        arguments.source,
        arguments.dest,
        arguments.to,
        **source_options.reading_arguments(arguments),
        **source_options.writing_arguments(arguments),
    )
    if not arguments.quiet:
        print(f"last rows: {result.last_rows}")
        print(f"{printable(str(result.path))}: {result.num_steps:,} actions in {result.num_episodes:,} episodes")
    return 0
