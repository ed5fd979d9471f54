"""Exports datasets to the layouts that other trainers read."""

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
    """What came of an export.

    Attributes:
      path: the file, or the folder of the Minari dataset.
      num_steps: number of its actions, which is what these layouts call steps.
      num_episodes: number of its episodes.
      num_bytes: its size on disk.
      last_rows: whether the last row of each episode of the source is a step, and why.
      nan_actions: the rows of the source whose action has a NaN, by field.
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
    """Writes a dataset in another layout; see the sinks in `formats.demos`.

    It is written beside `dest` and renamed when it is whole: an error leaves nothing,
    and what was there as it was.

    Args:
      source: whatever `convert` takes.
      dest: the HDF5 file to write; for Minari the folder, `<name>-v<version>`.
      layout: the layout.
      split: as in `convert`.
      data_dir: likewise.
      recipe: likewise.
      assume: likewise.
      fill: likewise.
      last_row: likewise.
      skip_bad_episodes: likewise.
      overwrite: replace `dest`.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: the source cannot be read, or has a field or an episode that the layout has no form for, or `dest`
        exists or cannot be written.
    """
    dest = local_path(dest)
    reading = ReadingOptions(recipe, assume, fill, last_row)
    with reading.open(source, split=split, data_dir=data_dir, skip_bad=skip_bad_episodes) as opened:
        if len(opened) > 1:
            raise InvalidArgumentError(f"{source}: several datasets; `convert` makes one of them first")
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
