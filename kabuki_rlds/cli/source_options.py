"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from kabuki_rlds.data.last_row import CHOICES
from kabuki_rlds.data.rules import FILLABLE
from kabuki_rlds.formats.locate import FEATURES, locate


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that define how sources are read: `--split`, `--data-dir`, and those of `add_assume`."""
    command.add_argument(
        "--split",
        help="split of each source in TFDS syntax, such as train[:10%%], train[17:18] or train+test (default for TFDS "
        "datasets: train; default for other sources: all episodes); Kabuki files, logs and demonstrations "
        "without masks have the split train; each mask of demonstrations is a split",
    )
    command.add_argument(
        "--data-dir", metavar="DIR", help="folder in which TFDS names are looked up (default: ~/tensorflow_datasets)"
    )
    add_assume(command)


def add_assume(command: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Adds the options that define what the source leaves undefined: `--recipe`, `--last-row` and `--assume`."""
    if recipe:
        command.add_argument(
            "--recipe",
            metavar="RECIPE",
            help="recipe that maps and transforms the fields: a YAML file or the name of a built-in recipe "
            "(`kabuki-rlds recipe` lists and drafts recipes)",
        )
        command.add_argument(
            "--last-row",
            choices=CHOICES,
            help="whether the last row of each episode is a step with its own action and reward, or only an "
            "observation (default: determined from the source's metadata, layout or values)",
        )
    command.add_argument(
        "--assume",
        metavar="KEY=VALUE",
        action="append",
        type=_assumption,
        default=[],
        help="semantics that the source format leaves undefined, such as dones=reward or max_episode_steps=1000",
    )


def add_fill(command: argparse.ArgumentParser) -> None:
    """Adds `--fill`."""
    command.add_argument(
        "--fill",
        metavar="FIELD=VALUE",
        action="append",
        type=_fill,
        default=[],
        help="constant for a required field that is missing from a source, such as reward=0",
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
        help="leave out and report damaged episodes, and damaged files if there are several; without this option, the "
        "first damaged episode is an error",
    )
    command.add_argument("--overwrite", action="store_true", help=f"replace {destination} if it exists")
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


def rlds_among(sources: Sequence[str], data_dir: str | None) -> bool:
    """Returns whether a source is an RLDS dataset, which TensorFlow reads.

    Raises:
      KabukiError: the source does not exist.
    """
    return any((path / FEATURES).exists() for source in sources for path in locate(source, data_dir).paths)


def _assumption(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _fill(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in FILLABLE:
        raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(FILLABLE)}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
