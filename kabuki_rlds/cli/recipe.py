"""The command `recipe`: what recipes there are, and a first draft of another."""

from __future__ import annotations

import argparse
import contextlib

from kabuki_rlds.cli.reading import add_assume, folder_among
from kabuki_rlds.cli.terminal import Commands, Parser, no_chatter
from kabuki_rlds.formats.detect import open_source
from kabuki_rlds.recipes.draft import draft
from kabuki_rlds.recipes.recipe import library


def add(commands: Commands, common: Parser) -> None:
    """Adds the command, with all that it takes."""
    command = commands.add_parser(
        "recipe",
        parents=[common],
        help="list the recipes, or draft one for a file",
        description="Lists the recipes that come along, or prints a first draft of one for a source that it has never "
        "seen: all its fields, what they are, and what could be done with them.",
        epilog="Example: kabuki-rlds recipe demo.hdf5 > lab.yaml; kabuki-rlds build demo.hdf5 --recipe lab.yaml …",
    )
    command.add_argument("source", metavar="SOURCE", nargs="?", help="any source of convert")
    add_assume(command, recipe=False)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and returns the exit code."""
    if arguments.source is None:
        known = library()
        width = max(map(len, known))
        for name, recipe in known.items():
            print(f"{name:{width}}  {recipe.about}")
        return 0
    if folder_among([arguments.source], None):
        with no_chatter():
            import tensorflow_datasets  # noqa: F401
    with contextlib.closing(open_source(arguments.source, images="encoded", assume=dict(arguments.assume))) as source:
        print(draft(source), end="")
    return 0
