"""The options that say how datasets are read, which several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kabuki_rlds.data.last_row import CHOICES
from kabuki_rlds.data.rules import FILLABLE
from kabuki_rlds.formats.locate import locate


def add_split(command: argparse.ArgumentParser) -> None:
    """Adds `--split`."""
    command.add_argument(
        "--split",
        help="split of each source, or a part of it, like train[:10%%], train[17:18] or train+test: of TFDS datasets "
        "(default: train), of a Kabuki file, a log or demonstrations, which are train, or a mask of "
        "demonstrations (default: all)",
    )


def add_data_dir(command: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    command.add_argument(
        "--data-dir", metavar="DIR", help="where TFDS names are looked up (default: ~/tensorflow_datasets)"
    )


def add_assume(command: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Adds those that say what files in a layout of others do not, and what is made of their fields."""
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
    """Adds the one that says what stands for a field that is lacking."""
    command.add_argument(
        "--fill",
        metavar="FIELD=VALUE",
        action="append",
        type=_fill,
        default=[],
        help="a constant for a required field that a source lacks, like reward=0",
    )


def add_skip_bad_episodes(command: argparse.ArgumentParser) -> None:
    """Adds the one that says what becomes of damaged episodes."""
    command.add_argument(
        "--skip-bad-episodes",
        action="store_true",
        help="leave out the episodes that are damaged, and the damaged files among several, report which they are, and "
        "go on with the rest; without it the first of them is an error",
    )


def folder_among(sources: Sequence[str], data_dir: str | None) -> bool:
    """Whether a source is a folder, which TensorFlow may be needed for.

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
