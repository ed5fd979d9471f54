"""Datasets in the layouts of others, for the trainers that read those."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import h5py
from tqdm import tqdm

from kabuki_rlds import interruption
from kabuki_rlds.block import Block
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.exports import d4rl, minari, robomimic
from kabuki_rlds.exports.pieces import Piece, pieces
from kabuki_rlds.formats.detect import open_sources
from kabuki_rlds.formats.hdf5.staging import StagedFile
from kabuki_rlds.formats.rlds.staging import StagedFolder
from kabuki_rlds.formats.source import Stamps
from kabuki_rlds.reading import Reading
from kabuki_rlds.schema import Schema

Path: TypeAlias = str | os.PathLike[str]
Layout: TypeAlias = Literal["robomimic", "minari", "d4rl"]

_Write: TypeAlias = Callable[[h5py.File, Iterator[Piece], Schema, str], tuple[int, int]]
_WRITERS: Mapping[str, _Write] = {"robomimic": robomimic.write, "minari": minari.write, "d4rl": d4rl.write}

#: What Minari takes as the name of a dataset.
_MINARI_NAME = re.compile(r"[\w-]+-v\d+")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
      path: the file, or the folder of the Minari dataset.
      episodes: number of its episodes.
      actions: number of its actions, which is what these layouts call steps.
    """

    path: pathlib.Path
    episodes: int
    actions: int


@interruption.held_back()
def export(
    source: Path,
    dest: Path,
    layout: Layout,
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    recipe: Path | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Exported:
    """Writes a dataset in a layout of others; how, say the modules of `exports`.

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
      overwrite: replace `dest`.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: the source cannot be read, or has a field or an episode that the layout has no form for, or `dest`
        exists or cannot be written.
    """
    dest = pathlib.Path(dest).expanduser()
    if layout == "minari" and not _MINARI_NAME.fullmatch(dest.name):
        raise KabukiError(f"{dest}: Minari takes a dataset by a folder of a name like hopper-v0")
    reading = Reading(recipe, assume, fill)
    with contextlib.ExitStack() as stack:
        opened = open_sources(
            [source], split=reading.split_of(split), data_dir=data_dir, images="arrays", assume=reading.assume
        )
        for each in opened:
            stack.callback(each.close)
        if len(opened) > 1:
            raise KabukiError(f"{source}: several datasets; `convert` makes one of them first")
        stamps = Stamps(opened)
        whole = reading.complete(opened[0])
        total = whole.size().steps
        bar = stack.enter_context(
            tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress, desc=dest.name)
        )
        target = stack.enter_context(_staged(dest, layout, overwrite))
        with h5py.File(
            target.partial if layout != "minari" else target.partial / "main_data.hdf5", "w", locking=False
        ) as f:
            counts = _WRITERS[layout](f, pieces(_counted(whole.blocks(), bar)), whole.schema, whole.label)
        episodes, actions = counts
        if episodes != whole.num_episodes:
            raise KabukiError(f"{whole.label}: says {whole.num_episodes} episodes, but {episodes} were read")
        if layout == "minari":
            minari.write_metadata(target.partial, _minari_name(dest), whole.schema, episodes, actions)
        interruption.check()
        stamps.check()
        target.commit()
    return Exported(dest, episodes, actions)


@contextlib.contextmanager
def _staged(dest: pathlib.Path, layout: Layout, overwrite: bool) -> Iterator[Any]:
    """What is renamed to the destination once it is whole."""
    if layout == "minari":
        with StagedFolder(
            dest / "data", overwrite=overwrite, mark="metadata.json", what="dataset of Minari's"
        ) as folder:
            yield folder
        return
    file = StagedFile(dest, overwrite=overwrite)
    try:
        yield file
    finally:
        file.abort()


def _counted(blocks: Iterator[Block], bar: tqdm[Any]) -> Iterator[Block]:
    for block in blocks:
        interruption.check()
        yield block
        bar.update(block.num_steps)


def _minari_name(dest: pathlib.Path) -> str:
    """The name of a dataset by its folder: below Minari's own, with what stands between."""
    root = pathlib.Path(os.environ.get("MINARI_DATASETS_PATH") or pathlib.Path.home() / ".minari" / "datasets")
    try:
        return dest.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return dest.name
