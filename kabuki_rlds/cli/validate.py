"""The command `validate`: checks a dataset against the rules of the Kabuki format."""

from __future__ import annotations

import argparse
import sys

from kabuki_rlds.cli.source_options import add_fill, add_reading_options, reading_arguments, rlds_among
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.commands.compare import compare
from kabuki_rlds.commands.validate import examine
from kabuki_rlds.errors import printable
from kabuki_rlds.formats.demos import registry
from kabuki_rlds.formats.hdf5.source import KabukiSource


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `validate` and its arguments to the parser."""
    command = commands.add_parser(
        "validate",
        parents=[common],
        help="check a dataset against the rules of the Kabuki format",
        description="Checks a Kabuki file against each rule of the format. Reads every row of every field. Any other "
        "source is checked as convert would convert it: missing fields, the rules on values, damaged data. Exits with "
        "0 if the dataset is valid. Otherwise prints each broken rule with its field and rows, and exits with 1. "
        "--against also compares a Kabuki file with its sources bit by bit, and exits with 1 if an episode is missing, "
        "added or changed. With --against, pass the options of the conversion.",
        epilog="Example: kabuki-rlds validate hopper.hdf5 --against ~/tensorflow_datasets/hopper/1.0.0",
    )
    command.add_argument("source", metavar="SOURCE", help="a Kabuki file or any other source of convert")
    command.add_argument(
        "--against",
        metavar="SOURCE",
        nargs="+",
        help="the sources of the conversion, in the same order",
    )
    add_reading_options(command)
    add_fill(command)
    command.add_argument("--conform", action="store_true", help="with --against: the file was converted with --conform")
    command.set_defaults(run=run, fail=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if arguments.conform and not arguments.against:
        arguments.fail("--conform requires --against")
    name = printable(arguments.source)
    options = reading_arguments(arguments) | {"fill": dict(arguments.fill)}
    if arguments.against:
        registry.check_is_not_demos(arguments.source)
    elif rlds_among([arguments.source], arguments.data_dir):
        import_tensorflow()
    validation = examine(arguments.source, progress=sys.stderr.isatty(), **({} if arguments.against else options))
    for violation in validation.violations:
        print(printable(f"{name}: {violation}"))
    for note in validation.notes:
        print(printable(f"{name}: noted: {note}"))
    for field, how in validation.derived.items():
        print(printable(f"{name}: {field}: not in the source, {how}"))
    if validation.last_rows is not None:
        print(f"{name}: last rows: {validation.last_rows}")
    if not validation.violations:
        print(f"{name}: {'valid' if validation.last_rows is None else 'converts to a valid file'}")
    if not arguments.against:
        return 1 if validation.violations else 0
    if rlds_among(arguments.against, arguments.data_dir):
        import_tensorflow()
    differences = compare(arguments.source, arguments.against, conform=arguments.conform, **options)
    for difference in differences:
        print(printable(f"{name}: differs from its source: {difference}"))
    if not differences:
        with KabukiSource(arguments.source, quiet=True) as file:
            lost = sum(loss.count for loss in file.skipped)
        but = f", except for {lost:,} damaged episodes that were left out" if lost else ""
        print(printable(f"{name}: matches its source{but}"))
    return 1 if validation.violations or differences else 0
