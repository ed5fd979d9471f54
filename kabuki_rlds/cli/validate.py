"""The command `validate`: a file against each rule of the format."""

from __future__ import annotations

import argparse
import sys

from kabuki_rlds.cli.source_options import add_assume, folder_among, reading_arguments
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.commands.compare import compare
from kabuki_rlds.commands.validate import examine
from kabuki_rlds.errors import printable
from kabuki_rlds.formats.demos import registry
from kabuki_rlds.formats.hdf5.source import KabukiSource


def add(commands: Commands, common: Parser) -> None:
    """Adds the command, with all that it takes."""
    command = commands.add_parser(
        "validate",
        parents=[common],
        help="check a file against each rule of the format",
        description="Checks a file against each rule of the Kabuki format, and reads every row of every field. "
        "Exits with 0 if it is valid, else with 1 and each broken rule: which field, which rows. --against compares "
        "it with what it came from, bit by bit, and exits with 1 where an episode is lost, added or changed.",
        epilog="Example: kabuki-rlds validate hopper.hdf5 --against ~/tensorflow_datasets/hopper/1.0.0",
    )
    command.add_argument("file", metavar="FILE", help="a Kabuki HDF5 file")
    command.add_argument(
        "--against",
        metavar="SOURCE",
        nargs="+",
        help="the datasets that the file was converted from, in their order, as convert takes them",
    )
    command.add_argument("--split", help="with --against: the split that was converted (default: train)")
    command.add_argument("--data-dir", metavar="DIR", help="with --against: where TFDS names are looked up")
    add_assume(command)
    command.add_argument("--conform", action="store_true", help="with --against: the file was converted with --conform")
    command.set_defaults(run=run, fail=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and returns the exit code."""
    if not arguments.against:
        for name in ("split", "data_dir", "recipe", "assume", "last_row", "conform"):
            if getattr(arguments, name, None):
                arguments.fail(f"--{name.replace('_', '-')} applies to --against, which is not given")
    registry.check_is_not_demos(arguments.file)
    validation = examine(arguments.file, progress=sys.stderr.isatty())
    violations = validation.violations
    for violation in violations:
        print(printable(f"{arguments.file}: {violation}"))
    for note in validation.notes:
        print(printable(f"{arguments.file}: noted: {note}"))
    if not violations:
        print(printable(f"{arguments.file}: valid"))
    if not arguments.against:
        return 1 if violations else 0
    if folder_among(arguments.against, arguments.data_dir):
        import_tensorflow()
    differences = compare(
        arguments.file,
        arguments.against,
        conform=arguments.conform,
        **reading_arguments(arguments),
    )
    for difference in differences:
        print(printable(f"{arguments.file}: differs from its source: {difference}"))
    if not differences:
        with KabukiSource(arguments.file, quiet=True) as file:
            lost = sum(loss.count for loss in file.skipped)
        but = f", but for {lost:,} damaged episodes that were left out" if lost else ""
        print(printable(f"{arguments.file}: holds what its source holds{but}"))
    return 1 if violations or differences else 0
