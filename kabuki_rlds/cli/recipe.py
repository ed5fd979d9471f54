"""The command `recipe`: lists or prints built-in recipes, or drafts a recipe for a source."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os

from kabuki_rlds.cli.source_options import add_assume, rlds_among
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.formats.open import open_source
from kabuki_rlds.transforms.recipes.draft import draft
from kabuki_rlds.transforms.recipes.recipe import library

_log = logging.getLogger("kabuki_rlds")


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `recipe` and its arguments to the parser."""
    command = commands.add_parser(
        "recipe",
        parents=[common],
        help="list or print the built-in recipes, or draft one for a file",
        description="Lists the built-in recipes, prints one of them, or prints a draft of a recipe for a source. The "
        "draft lists all fields of the source with their types and possible operations.",
        epilog="Example: kabuki-rlds recipe demo.hdf5 > lab.yaml; kabuki-rlds build demo.hdf5 --recipe lab.yaml …",
    )
    command.add_argument(
        "source", metavar="NAME|SOURCE", nargs="?", help="a built-in recipe, or any source that convert takes"
    )
    add_assume(command, recipe=False)
    command.set_defaults(run=run, fail=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    known = library()
    if arguments.source in (None, *known) and arguments.assume:
        arguments.fail("--assume needs a SOURCE that a recipe is drafted for")
    if arguments.source in known:
        if os.path.lexists(arguments.source):
            _log.info(
                "printing the built-in recipe %s; to draft a recipe for the file or folder of that name, use ./%s",
                arguments.source,
                arguments.source,
            )
        print(known[arguments.source].text, end="")
        return 0
    if arguments.source is None:
        width = max(map(len, known))
        for name, recipe in known.items():
            print(f"{name:{width}}  {recipe.about}")
        return 0
    if rlds_among([arguments.source], None):
        import_tensorflow()
    with contextlib.closing(open_source(arguments.source, images="encoded", assume=dict(arguments.assume))) as source:
        print(draft(source), end="")
    return 0
