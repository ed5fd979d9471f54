"""Exports datasets to the layouts of robomimic, Minari and D4RL."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

from kabuki_rlds.arguments import renamed
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.nan_actions import NanRows
from kabuki_rlds.data.source import Fingerprints
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath, local_path
from kabuki_rlds.formats.demos.registry import SINKS
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.transfer import progress_bar, transfer

LayoutName: TypeAlias = Literal["robomimic", "minari", "d4rl"]


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
      path: the file, or the folder of the Minari dataset.
      num_steps: number of actions. These layouts call them steps.
      num_episodes: number of episodes.
      num_bytes: size on disk in bytes.
      last_rows: whether the last row of each episode of the source is a step, and the reason.
      nan_actions: the rows of the source whose action contains NaN, by field.
    """

    path: pathlib.Path
    num_steps: int
    num_episodes: int
    num_bytes: int
    last_rows: LastRows
    nan_actions: list[NanRows]

    actions = renamed("actions", "num_steps")
    episodes = renamed("episodes", "num_episodes")


@signals.held_back()
def export(
    source: StrPath,
    dest: StrPath,
    layout: LayoutName,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    last_row: LastRow | None = None,
    skip_bad_episodes: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Exported:
    """Writes a dataset in the layout of robomimic, Minari or D4RL. The sinks in `formats.demos` define the layouts.

    The output is written to a temporary path, which is renamed to `dest` at the end. If an error occurs, no partial
    output is left, and an existing `dest` is unchanged.

    Args:
      source: the source, as in `convert`.
      dest: the HDF5 file to write. For Minari, the folder `<name>-v<version>`.
      layout: the layout to write.
      split: as in `convert`.
      data_dir: as in `convert`.
      recipe: as in `convert`.
      assume: as in `convert`.
      fill: as in `convert`.
      last_row: as in `convert`.
      skip_bad_episodes: as in `convert`.
      overwrite: replace an existing `dest`.
      progress: show a progress bar on stderr.

    Returns:
      The path, size and counts of the output.

    Raises:
      KabukiError: the source cannot be read, the layout cannot represent a field or an episode, or `dest` exists or
        cannot be written.

    Example:
      kabuki_rlds.export("lift.hdf5", "~/.minari/datasets/lab/lift-v0", "minari")
    """
    dest = local_path(dest)
    reading = ReadingOptions(recipe, assume, fill, last_row)
    with reading.open(source, split=split, data_dir=data_dir, skip_bad=skip_bad_episodes) as opened:
        if len(opened) > 1:
            raise InvalidArgumentError(f"{source}: contains several datasets; merge them with `convert` first")
        fingerprints = Fingerprints(opened)
        whole = reading.complete(opened[0])
        last_rows = whole.decide()
        with (
            SINKS[layout](dest, whole.schema, whole.label, last_rows, overwrite=overwrite) as sink,
            progress_bar(whole.size().steps, dest.name, progress) as bar,
        ):
            moved = transfer([whole], sink, whole.schema, fingerprints, bar, label=whole.label)
    files = dest.rglob("*") if dest.is_dir() else [dest]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return Exported(dest, sink.num_actions, moved.num_episodes, num_bytes, last_rows, moved.nan_actions)
