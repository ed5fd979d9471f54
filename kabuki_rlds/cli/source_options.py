"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from kabuki_rlds.data.last_row import CHOICES
from kabuki_rlds.data.rules import FILLABLE
from kabuki_rlds.formats.locate import locate


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that define how sources are read: `--split`, `--data-dir`, and those of `add_assume`."""
    command.add_argument(
        "--split",
        help="split of each source, or a part of it, like train[:10%%], train[17:18] or train+test: of TFDS datasets "
        "(default: train), of a Kabuki file, a log or demonstrations, which are train, or a mask of "
        "demonstrations (default: all)",
    )
    command.add_argument(
        "--data-dir", metavar="DIR", help="where TFDS names are looked up (default: ~/tensorflow_datasets)"
    )
    add_assume(command)


def add_assume(command: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Adds the options that define what the source leaves undefined: `--recipe`, `--last-row` and `--assume`."""
    if recipe:
        command.add_argument(
            "--recipe",
            metavar="RECIPE",
            help="what becomes of the fields: a YAML file, or the name of a recipe that comes along "
            "(`kabuki-rlds recipe` lists them, and drafts one)",
        )
        command.add_argument(
            "--last-row",
            choices=CHOICES,
            help="whether the last row of each episode is a step with its own action and reward, or only an "
            "observation (default: what the source states, its layout or its values tell)",
        )
    command.add_argument(
        "--assume",
        metavar="KEY=VALUE",
        action="append",
        type=_assumption,
        default=[],
        help="what files in a layout of others do not say, like dones=reward or max_episode_steps=1000",
    )


def add_fill(command: argparse.ArgumentParser) -> None:
    """Adds `--fill`."""
    command.add_argument(
        "--fill",
        metavar="FIELD=VALUE",
        action="append",
        type=_fill,
        default=[],
        help="a constant for a required field that a source lacks, like reward=0",
    )


def add_writing_options(command: argparse.ArgumentParser, destination: str) -> None:
    """Adds the options of commands that write a dataset.

    Args:
      command: the parser of the command.
      destination: what the command writes, for the help.
    """
    add_fill(command)
    command.add_argument(
        "--skip-bad-episodes",
        action="store_true",
        help="leave out the episodes that are damaged, and the damaged files among several, report which they are, and "
        "go on with the rest; without it the first of them is an error",
    )
    command.add_argument("--overwrite", action="store_true", help=f"replace {destination} if it is there")
    command.add_argument("--quiet", action="store_true", help="print warnings and errors only")


def reading_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `add_reading_options` as arguments of the Python functions."""
    return {
        "split": arguments.split,
        "data_dir": arguments.data_dir,
        "recipe": arguments.recipe,
        "assume": dict(arguments.assume),
        "last_row": arguments.last_row,
    }


def writing_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `add_writing_options` as arguments of the Python functions."""
    return {
        "fill": dict(arguments.fill),
        "skip_bad_episodes": arguments.skip_bad_episodes,
        "overwrite": arguments.overwrite,
        "progress": sys.stderr.isatty() and not arguments.quiet,
    }


def folder_among(sources: Sequence[str], data_dir: str | None) -> bool:
    """Returns whether a source is a folder. Reading a folder may need TensorFlow.

    Raises:
      KabukiError: there is no such source.
    """
    return any(path.is_dir() for source in sources for path in locate(source, data_dir).paths)


def _assumption(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _fill(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in FILLABLE:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FILLABLE)}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no number") from None
