"""The base class of sinks that write layouts of demonstrations.

An episode may be larger than memory, so it is written in pieces.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import ClassVar, Self

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.block import Block, Column, Nested, Ragged, nbytes
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import IS_TERMINAL, REQUIRED, Violation
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.errors import KabukiError, SchemaMismatchError
from kabuki_rlds.files.atomic_file import StagedFile
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.files.disk import reserve
from kabuki_rlds.formats.safe_hdf5 import caches, verdicts
from kabuki_rlds.formats.safe_hdf5.new_file import discard, writing

_log = logging.getLogger("kabuki_rlds")

#: Upper bounds of what HDF5 adds to the data of a file, and of a dataset with one or two attributes.
_FILE_OVERHEAD = 1 << 20
_DATASET_OVERHEAD = 16 << 10
#: The approximate size of a chunk, and the most rows in one.
_CHUNK_BYTES = 256 << 10
_CHUNK_ROWS = 1 << 16
#: A piece of at least so many bytes is written before its episode is complete.
_PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class EpisodePiece:
    """Consecutive rows of one episode.

    Attributes:
      episode: the number of the episode.
      begins: whether the first row is the first of the episode.
      ends: whether the last row is the last of the episode.
      last_is_step: whether the last row of the episode is a step, not an observation alone.
      steps: path to column of each step field.
      count: number of rows.
      metadata: path to value of each episode field; empty unless `begins`.
    """

    episode: int
    begins: bool
    ends: bool
    last_is_step: bool
    steps: dict[str, np.ndarray]
    count: int
    metadata: dict[str, np.ndarray]

    @property
    def num_actions(self) -> int:
        """Number of rows with an action: all but a last observation."""
        return self.count - (self.ends and not self.last_is_step)

    def followed_by(self, steps: Mapping[str, np.ndarray]) -> EpisodePiece:
        """Returns a piece with these rows after its own."""
        joined = {path: np.concatenate([column, steps[path]]) for path, column in self.steps.items()}
        return dataclasses.replace(self, steps=joined, count=len(next(iter(joined.values()))))

    @property
    def lacks_observation(self) -> bool:
        """Whether the episode ends here without an observation after its last action."""
        return self.ends and self.last_is_step

    def with_last_observation(self, path: str) -> np.ndarray:
        """Returns the rows of an observation, with the last one repeated if the last observation is missing."""
        rows = self.steps[path]
        return np.concatenate([rows, rows[-1:]]) if self.lacks_observation else rows


class DemoSink(abc.ABC):
    """Writes one HDF5 file of demonstrations. Each layout is a subclass.

    Args:
      dest: the file to write, or the folder of a dataset.
      schema: the fields of the steps and the episodes.
      label: names the source in messages.
      last_rows: whether the last row of each episode is a step.
      overwrite: replace `dest`.

    Attributes:
      num_actions: number of actions written, which these layouts call steps.

    Raises:
      KabukiError: `dest` exists or cannot be written, or the layout cannot store a field.
    """

    #: The name of the layout, in messages.
    layout: ClassVar[str]
    #: Whether each episode has an observation after its last action, repeated if the source has none.
    needs_last_observation: ClassVar[bool] = False

    def __init__(self, dest: pathlib.Path, schema: Schema, label: str, last_rows: LastRows, *, overwrite: bool):
        self.num_actions = 0
        self._dest = dest
        self._schema = schema
        self._label = label
        self._last_is_step = last_rows.is_step
        self._has_next = self.needs_last_observation or last_rows.num_observations > 0
        if self._has_next and last_rows.num_steps:
            _log.warning(
                "%s: in %s of %s episodes no observation follows the last action; the last one is repeated there",
                label, f"{last_rows.num_steps:,}", f"{len(last_rows.is_step):,}",
            )  # fmt: skip
        self._num_begun = 0
        self._actions_before = 0
        self._nbytes_before = 0
        self._held: EpisodePiece | None = None
        self._file: h5py.File | None = None
        self._descriptor = -1
        self._staged, self._path = self._stage(overwrite)
        try:
            with writing(dest):
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                reserve(self._descriptor, 0, _FILE_OVERHEAD, dest)
                # The partial file or folder is locked already.
                file = h5py.File(self._path, "w", locking=False, **caches.CHUNK_CACHE)
                self._file = caches.limit_metadata_cache(file)
                self._begin(self._file)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _stage(self, overwrite: bool) -> tuple[StagedFile | StagedFolder, pathlib.Path]:
        """Returns what is renamed to the destination at the end, and the HDF5 file to write."""
        staged = StagedFile(self._dest, overwrite=overwrite)
        return staged, staged.partial

    @abc.abstractmethod
    def _begin(self, file: h5py.File) -> None:
        """Checks that the layout can store the fields, and creates what all episodes share."""

    @abc.abstractmethod
    def _begin_episode(self, piece: EpisodePiece) -> None:
        """Begins the episode of a piece. `_append` then takes the piece."""

    @abc.abstractmethod
    def _append(self, piece: EpisodePiece) -> None:
        """Appends the rows of a piece."""

    @abc.abstractmethod
    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        """Ends an episode, of which all pieces were appended."""

    def write(self, block: Block) -> None:
        with writing(self._dest):
            self._write(block)

    def _write(self, block: Block) -> None:
        assert self._file is not None
        # What HDF5 still buffers needs disk space too.
        self._file.flush()
        # A layout may store the observations twice, and the end of the previous block is not written yet.
        data = 2 * (self._nbytes_before + block.nbytes)
        datasets = (block.num_episodes + 1) * (len(self._schema.steps) + len(block.metadata) + 4)
        most = data + datasets * _DATASET_OVERHEAD + _FILE_OVERHEAD
        reserve(self._descriptor, self._file.id.get_filesize(), most, self._dest)
        self._nbytes_before = block.nbytes
        for i, rows in block.episode_slices():
            begins = i >= 0
            steps = {path: _plain(column[rows]) for path, column in block.steps.items()}
            if rows.start and rows.stop == block.num_steps:
                # A view would keep the block in memory until the next one is here.
                steps = {path: column.copy() for path, column in steps.items()}
            if not begins and self._held is not None and nbytes(self._held.steps.values()) < _PIECE_BYTES:
                self._held = self._held.followed_by(steps)
                continue
            self._write_held(ends=begins)
            self._num_begun += begins
            number = self._num_begun - 1
            metadata = {path: _plain(column[i : i + 1])[0] for path, column in block.metadata.items()} if begins else {}
            is_step = bool(self._last_is_step[number])
            self._held = EpisodePiece(number, begins, False, is_step, steps, rows.stop - rows.start, metadata)

    def _write_held(self, *, ends: bool) -> None:
        """Writes the last piece, which ends its episode or does not."""
        if self._held is None:
            return
        piece = dataclasses.replace(self._held, ends=ends)
        self._held = None
        if piece.begins:
            self._actions_before = self.num_actions
            self._begin_episode(piece)
        self._append(piece)
        self.num_actions += piece.num_actions
        if ends:
            num_actions = self.num_actions - self._actions_before
            if not num_actions:
                raise KabukiError(
                    f"{self._label}: episode {piece.episode} has no action, so {self.layout}'s layout cannot store it"
                )
            self._end_episode(num_actions, bool(np.any(piece.steps[IS_TERMINAL][-1])))

    def commit(self, last_rows: LastRows, violations: Sequence[Violation] = ()) -> None:
        with writing(self._dest):
            self._write_held(ends=True)
            self._complete()
        self._staged.commit()
        verdicts.trust(self._staged.destination / self._path.relative_to(self._staged.partial))

    def _complete(self) -> None:
        """Completes and closes the HDF5 file after the last episode."""
        assert self._file is not None
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        self._file = None
        os.ftruncate(self._descriptor, min(size, os.fstat(self._descriptor).st_size))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staged.abort()
        if self._file is not None:
            discard(self._file)
            self._file = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _require_array(self, path: str) -> None:
        """Rejects a step field that is a dict.

        Raises:
          SchemaMismatchError: it is one.
        """
        if path not in self._schema.steps:
            recipe = recipe_text.one_array(path, self._schema.steps)
            raise SchemaMismatchError(
                f"{path!r} is a dict, and {self.layout} takes one array; a recipe makes one: {recipe}",
                file=self._label,
            )

    def _check_fields(self, name_of: Callable[[str], str]) -> None:
        """Rejects step fields that the layout cannot store.

        Args:
          name_of: returns the path of a step field in the layout; "" for a field that is not stored.

        Raises:
          SchemaMismatchError: the rows of a field vary in size or are image files, or two fields have the same path.
        """
        fields_at: dict[str, str] = {}
        for path in self._schema.steps:
            parts = name_of(path).split("/")
            above = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
            for name in filter(None, above):
                other = fields_at.get(name)
                if other is not None and (name == above[-1] or name == name_of(other)):
                    moved = other if path.partition("/")[0] in REQUIRED else path
                    raise SchemaMismatchError(
                        f"{other!r} and {path!r} would both be {name!r} in {self.layout}'s layout; a recipe can rename "
                        f"one: {recipe_text.steps([recipe_text.renamed('other_name', moved)])}",
                        file=self._label,
                    )
                fields_at.setdefault(name, path)
        for path, field in self._schema.steps.items():
            if not field.is_fixed:
                remedy = f"a recipe can leave it out: `drop: [{path}]`"
                if field.encoded and None not in field.shape and not field.nested:
                    recipe = recipe_text.steps([recipe_text.renamed(path, path, ", cast: uint8")])
                    remedy = f"a recipe can decode it: {recipe}"
                raise SchemaMismatchError(
                    f"step field {path!r}, {field.describe()}, has no form in {self.layout}'s layout; {remedy}",
                    file=self._label,
                    fields=(path,),
                )


class DatasetAppender:
    """Appends the rows of a field to a new dataset.

    Args:
      group: the group of the dataset.
      path: the path of the dataset in the group.
      field: dtype and shape of a row.
      piece: the first piece of the episode that the dataset holds; None if it holds all episodes. A chunk has no more
        rows than the piece.
    """

    def __init__(self, group: h5py.Group, path: str, field: Field, piece: EpisodePiece | None = None):
        shape = tuple(d or 0 for d in field.shape)
        dtype = h5py.string_dtype() if field.dtype == BYTES else field.dtype
        most_rows = _CHUNK_ROWS if piece is None else piece.count + piece.lacks_observation
        chunk = max(1, min(most_rows, _CHUNK_BYTES // max(field.row_nbytes or 64, 1)))
        # HDF5 rejects chunks of size 0, and chunks larger than the maximum shape.
        self._dataset = group.create_dataset(
            path,
            (0, *shape),
            dtype,
            maxshape=(None, *(d or None for d in shape)),
            chunks=(chunk, *(d or 1 for d in shape)),
            compression="gzip",
        )

    def append(self, rows: np.ndarray) -> None:
        """Appends rows.

        Raises:
          KabukiError: a text contains a NUL, where HDF5 would end it.
        """
        if rows.dtype == BYTES and b"\0" in b"".join(rows.ravel().tolist()):
            raise KabukiError(f"{self._dataset.name[1:]}: a text with a NUL, which HDF5's texts cannot hold")
        before = len(self._dataset)
        self._dataset.resize(before + len(rows), axis=0)
        if rows.size:
            self._dataset[before:] = rows

    def replace_last(self, row: bool) -> None:
        """Replaces the last row."""
        self._dataset[-1] = row

    def close(self) -> None:
        """Writes the rows that HDF5 still holds in memory.

        Without this, HDF5 writes them when Python deletes the dataset, where errors are ignored, and later crash HDF5.
        """
        self._dataset.flush()


def _plain(column: Column) -> np.ndarray:
    """Converts a column to an array. Rows of variable size become an object array of arrays."""
    if isinstance(column, np.ndarray):
        return column
    made = np.empty(len(column), object)
    for i in range(len(column)):
        row = column[i : i + 1]
        assert isinstance(row, (Ragged, Nested))
        made[i] = row.values.reshape(row.shapes[0]) if isinstance(row, Ragged) else row.values
    return made
