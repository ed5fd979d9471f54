"""Datasets in the layouts of others, for the trainers that read those."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TypeAlias

import h5py
from tqdm import tqdm

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.last_row import LastRow, LastRows, warn_of_conflict
from kabuki_rlds.data.nan_actions import NanActionCounter, NanRows, warn_of_nan
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.data.source import Fingerprints
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError
from kabuki_rlds.files import signals
from kabuki_rlds.files.atomic_file import StagedFile
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.files.disk import reserve
from kabuki_rlds.files.paths import StrPath, local_path
from kabuki_rlds.formats.demos import d4rl_writer, minari_writer, robomimic_writer
from kabuki_rlds.formats.demos.episode_pieces import EpisodePiece, pieces
from kabuki_rlds.formats.open import open_sources
from kabuki_rlds.transforms.reading_options import ReadingOptions

_log = logging.getLogger("kabuki_rlds")

LayoutName: TypeAlias = Literal["robomimic", "minari", "d4rl"]

_Write: TypeAlias = Callable[[h5py.File, Iterator[EpisodePiece], Schema, str, bool], tuple[int, int]]
_WRITERS: Mapping[str, _Write] = {
    "robomimic": robomimic_writer.write,
    "minari": minari_writer.write,
    "d4rl": d4rl_writer.write,
}

#: What HDF5 writes of a file, and of a dataset with an attribute or two, beside the data; more than it ever is.
_FILE_OVERHEAD = 1 << 20
_DATASET_OVERHEAD = 16 << 10

_MINARI_FILE = "main_data.hdf5"
#: What Minari takes as the name of a dataset.
_MINARI_NAME = re.compile(r"[\w-]+-v\d+")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
      path: the file, or the folder of the Minari dataset.
      episodes: number of its episodes.
      actions: number of its actions, which is what these layouts call steps.
      last_rows: whether the last row of each episode of the source is a step, and why.
      nan_actions: the rows of the source whose action has a NaN, by field.
    """

    path: pathlib.Path
    episodes: int
    actions: int
    last_rows: LastRows
    nan_actions: list[NanRows]


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
      last_row: likewise.
      skip_bad_episodes: likewise.
      overwrite: replace `dest`.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: the source cannot be read, or has a field or an episode that the layout has no form for, or `dest`
        exists or cannot be written.
    """
    dest = local_path(dest)
    if layout == "minari" and not _MINARI_NAME.fullmatch(dest.name):
        raise InvalidArgumentError(f"{dest}: Minari takes a dataset by a folder of a name like hopper-v0")
    reading = ReadingOptions(recipe, assume, fill, last_row)
    with contextlib.ExitStack() as stack:
        opened = open_sources(
            [source],
            split=reading.split_of(split),
            data_dir=data_dir,
            images="arrays",
            skip_bad=skip_bad_episodes,
            assume=reading.assume,
            recipe_assume=reading.recipe_assume,
        )
        for each in opened:
            stack.callback(each.close)
        if len(opened) > 1:
            raise InvalidArgumentError(f"{source}: several datasets; `convert` makes one of them first")
        stamps = Fingerprints(opened)
        whole = reading.complete(opened[0])
        last_rows = whole.decide()
        warn_of_conflict(last_rows, whole.label)
        has_next = layout == "minari" or last_rows.num_observations > 0
        if has_next and last_rows.num_steps:
            _log.warning(
                "%s: in %s of %s episodes no observation follows the last action; the last one is repeated there",
                whole.label, f"{last_rows.num_steps:,}", f"{whole.num_episodes:,}",
            )  # fmt: skip
        total = whole.size().steps
        bar = stack.enter_context(
            tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress, desc=dest.name)
        )
        nan = NanActionCounter(whole.schema.steps)
        target = stack.enter_context(_staged(dest, layout, overwrite))
        with _GrowingFile(target.partial if layout != "minari" else target.partial / _MINARI_FILE, dest) as growing:
            blocks = growing.with_room(_counted(whole.blocks(), bar, nan), len(whole.schema.steps))
            episodes, actions = _WRITERS[layout](
                growing.file, pieces(blocks, last_rows.is_step), whole.schema, whole.label, has_next
            )
        if episodes != whole.num_episodes:
            raise DamagedDataError(f"says {whole.num_episodes} episodes, but {episodes} were read", file=whole.label)
        if layout == "minari":
            minari_writer.write_metadata(target.partial, _minari_name(dest), whole.schema, episodes, actions)
        signals.check()
        stamps.check()
        target.commit()
    nan_actions = nan.finish(last_rows.is_step)
    warn_of_nan(nan_actions, whole.label)
    return Exported(dest, episodes, actions, last_rows, nan_actions)


@contextlib.contextmanager
def _staged(dest: pathlib.Path, layout: LayoutName, overwrite: bool) -> Iterator[Any]:
    """What is renamed to the destination once it is whole."""
    if layout == "minari":
        with StagedFolder(dest / "data", overwrite=overwrite, mark="metadata.json", what="Minari dataset") as folder:
            yield folder
        return
    file = StagedFile(dest, overwrite=overwrite)
    try:
        yield file
    finally:
        file.abort()


class _GrowingFile:
    """A new HDF5 file, and the room that the disk has for what is written next.

    Args:
      path: the file.
      dest: what to call it in a message.
    """

    def __init__(self, path: pathlib.Path, dest: pathlib.Path):
        self._dest = dest
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            reserve(self._descriptor, 0, _FILE_OVERHEAD, dest)
            # It is the only one who writes there: the partial file or folder is locked.
            self.file = h5py.File(path, "w", locking=False)
        except BaseException:
            os.close(self._descriptor)
            raise

    def with_room(self, blocks: Iterator[Block], columns: int) -> Iterator[Block]:
        """The blocks, each once there is room for it.

        Raises:
          KabukiError: there is none.
        """
        before = 0
        for block in blocks:
            # What HDF5 holds back would need room too.
            self.file.flush()
            # A layout may have the observations twice, and the end of the block before is yet to be written.
            data = 2 * (before + block.nbytes)
            datasets = (block.num_episodes + 1) * (columns + len(block.metadata) + 4)
            nbytes = data + datasets * _DATASET_OVERHEAD + _FILE_OVERHEAD
            reserve(self._descriptor, self.file.id.get_filesize(), nbytes, self._dest)
            before = block.nbytes
            yield block

    def __enter__(self) -> _GrowingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.flush()
            size = self.file.id.get_filesize()
            self.file.close()
            os.ftruncate(self._descriptor, min(size, os.fstat(self._descriptor).st_size))
        finally:
            os.close(self._descriptor)


def _counted(blocks: Iterator[Block], bar: tqdm[Any], nan: NanActionCounter) -> Iterator[Block]:
    for block in blocks:
        signals.check()
        nan.observe(block)
        yield block
        bar.update(block.num_steps)


def _minari_name(dest: pathlib.Path) -> str:
    """The name of a dataset by its folder: below Minari's own, with what stands between."""
    root = pathlib.Path(os.environ.get("MINARI_DATASETS_PATH") or pathlib.Path.home() / ".minari" / "datasets")
    try:
        return dest.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return dest.name
