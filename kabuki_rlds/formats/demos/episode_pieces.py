"""Episodes in pieces, so that one may be larger than memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.block import Block, Column, Nested, Ragged
from kabuki_rlds.data.rules import REQUIRED
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.errors import KabukiError, SchemaMismatchError


@dataclasses.dataclass(frozen=True)
class EpisodePiece:
    """Consecutive rows of one episode.

    Attributes:
      episode: its number.
      begins: whether they begin it.
      ends: whether they end it.
      last_is_step: whether the last row of the episode is a step, and not an observation alone.
      steps: path to column.
      count: how many rows they are.
      metadata: path to what the episode says of itself, with its first rows; else empty.
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
        """How many of the rows have an action: all but a last observation."""
        return self.count - (self.ends and not self.last_is_step)

    @property
    def lacks_observation(self) -> bool:
        """Whether they end an episode after whose last action no observation follows."""
        return self.ends and self.last_is_step

    def with_last_observation(self, path: str) -> np.ndarray:
        """The rows of a field of observations, and the last of them again where no observation follows."""
        rows = self.steps[path]
        return np.concatenate([rows, rows[-1:]]) if self.lacks_observation else rows


def pieces(blocks: Iterator[Block], last_is_step: np.ndarray) -> Iterator[EpisodePiece]:
    """The episodes of blocks, in pieces.

    Args:
      blocks: the steps.
      last_is_step: whether the last row of each episode is a step: bool, (episodes,).
    """
    held: EpisodePiece | None = None
    number = -1
    for block in blocks:
        bounds = [0, *block.starts.tolist(), block.num_steps]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if i:
                number += 1
            elif start == stop:
                continue
            if held is not None:
                yield dataclasses.replace(held, ends=bool(i))
            steps = {path: _plain(column[start:stop]) for path, column in block.steps.items()}
            metadata = {path: _plain(column[i - 1 : i])[0] for path, column in block.metadata.items()} if i else {}
            held = EpisodePiece(number, bool(i), False, bool(last_is_step[number]), steps, stop - start, metadata)
    if held is not None:
        yield dataclasses.replace(held, ends=True)


def check_plain(schema: Schema, label: str, layout: str, name_of: Callable[[str], str]) -> None:
    """Refuses step fields that the layout has no form for.

    Args:
      schema: the fields.
      label: what to call the source in a message.
      layout: likewise the layout.
      name_of: where a step field is to stand, "" for nowhere.

    Raises:
      KabukiError: the rows of one vary in size, or are image files; or two would stand in one place.
    """
    taken: dict[str, str] = {}
    for path in schema.steps:
        parts = name_of(path).split("/")
        above = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
        for name in filter(None, above):
            other = taken.get(name)
            if other is not None and (name == above[-1] or name == name_of(other)):
                moved = other if path.partition("/")[0] in REQUIRED else path
                raise SchemaMismatchError(
                    f"{other!r} and {path!r} would both be {name!r} in {layout}'s layout; a recipe can rename "
                    f"one: {recipe_text.steps([recipe_text.renamed('other_name', moved)])}",
                    file=label,
                )
            taken.setdefault(name, path)
    for path, field in schema.steps.items():
        if not field.is_fixed:
            remedy = f"a recipe can leave it out: `drop: [{path}]`"
            if field.encoded and None not in field.shape and not field.nested:
                remedy = (
                    f"a recipe can decode it: {recipe_text.steps([recipe_text.renamed(path, path, ', cast: uint8')])}"
                )
            raise SchemaMismatchError(
                f"step field {path!r}, {field.describe()}, has no form in {layout}'s layout; {remedy}",
                file=label,
                fields=(path,),
            )


class DatasetAppender:
    """Appends the rows of a field to a new dataset.

    Args:
      group: where the dataset stands.
      path: its path there.
      field: what a row is.
    """

    def __init__(self, group: h5py.Group, path: str, field: Field):
        shape = tuple(d or 0 for d in field.shape)
        dtype = h5py.string_dtype() if field.dtype == BYTES else field.dtype
        chunk = max(1, min(1 << 16, (1 << 18) // max(field.row_nbytes or 64, 1)))
        # No chunk is empty, and none is larger than what may become of the dataset.
        self._dataset = group.create_dataset(
            path,
            (0, *shape),
            dtype,
            maxshape=(None, *(d or None for d in shape)),
            chunks=(chunk, *(d or 1 for d in shape)),
            compression="gzip",
        )

    def append(self, rows: np.ndarray) -> None:
        """Adds rows at the end.

        Raises:
          KabukiError: a text holds a NUL, at which HDF5's texts end.
        """
        if rows.dtype == BYTES and b"\0" in b"".join(rows.ravel().tolist()):
            raise KabukiError(f"{self._dataset.name[1:]}: a text with a NUL, which HDF5's texts cannot hold")
        before = len(self._dataset)
        self._dataset.resize(before + len(rows), axis=0)
        if rows.size:
            self._dataset[before:] = rows


def _plain(column: Column) -> np.ndarray:
    """A column as an array; what varies in size as one of arrays."""
    if isinstance(column, np.ndarray):
        return column
    made = np.empty(len(column), object)
    for i in range(len(column)):
        row = column[i : i + 1]
        assert isinstance(row, (Ragged, Nested))
        made[i] = row.values.reshape(row.shapes[0]) if isinstance(row, Ragged) else row.values
    return made
