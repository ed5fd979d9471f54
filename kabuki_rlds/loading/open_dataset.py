"""Random access to the episodes of any source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np

from kabuki_rlds.data.block import Block, Column, concatenate
from kabuki_rlds.data.common_schema import check_equal
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.nested_arrays import as_array, unflatten
from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.source import Source
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.transforms.reading_options import ReadingOptions


@dataclasses.dataclass(frozen=True)
class StoredEpisode:
    """An episode in memory.

    Attributes:
      steps: a nested dict with the structure of an RLDS step, of NumPy arrays (rows, *row shape). Images are decoded.
        Text is an object array of `bytes`; rows of different shapes are an object array of arrays.
      metadata: a nested dict of the episode fields. A value is an array, a NumPy scalar or `bytes`.
      num_steps: the number of rows.
      last_is_step: whether the last row is a step with its own action and reward. If False, it holds only an
        observation. None if neither the user nor the source states it.
    """

    steps: dict[str, Any]
    metadata: dict[str, Any]
    num_steps: int
    last_is_step: bool | None

    def __repr__(self) -> str:
        return f"StoredEpisode(num_steps={self.num_steps}, steps={list(self.steps)}, metadata={list(self.metadata)})"


class OpenDataset(Sequence[StoredEpisode]):
    """A sequence of the episodes of an open source. An episode is read when it is accessed.

    `ds[i]` reads one episode, `ds[-1]` the last one. A slice or a list of indices gives another `OpenDataset` with
    these episodes, without reading them. It can be used until the first dataset is closed.

    Attributes:
      schema: the fields of steps and episodes.
      info: name, version, description and so on of the dataset.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        last_rows: Sequence[LastRows | None],
        numbers: Sequence[int],
        passes: list[int] | None = None,
    ):
        self._sources = sources
        self._last_rows = last_rows
        self._numbers = numbers
        # A source supports one iteration (pass) at a time. All views share the number of the current pass, so that
        # an iteration notices when another one has started.
        self._passes = [0] if passes is None else passes
        self._bounds = np.cumsum([0, *(source.num_episodes for source in sources)])
        # Sources return encoded images of Kabuki files without decoding them, so decode them here.
        schema = sources[0].schema
        self._steps = ImageDecoder(schema.steps, sources[0].label)
        self._metadata = ImageDecoder(schema.metadata, sources[0].label)
        self.schema = dataclasses.replace(
            schema,
            steps={path: decoded(field) for path, field in schema.steps.items()},
            metadata={path: decoded(field) for path, field in schema.metadata.items()},
        )
        self._stack = contextlib.ExitStack()

    @property
    def info(self) -> Info:
        return self.schema.info

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> StoredEpisode: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> OpenDataset: ...

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> StoredEpisode | OpenDataset:
        if isinstance(index, slice):
            return OpenDataset(self._sources, self._last_rows, self._numbers[index], self._passes)
        if isinstance(index, (Sequence, np.ndarray)):
            chosen = [self._numbers[self._position(i)] for i in index]
            return OpenDataset(self._sources, self._last_rows, chosen, self._passes)
        return self._read(self._numbers[self._position(index)])

    def __iter__(self) -> Iterator[StoredEpisode]:
        at = 0
        while at < len(self):
            # Read consecutive episodes in one pass. Start a new pass if another episode was read in the meantime.
            stop = at + 1
            while stop < len(self) and self._numbers[stop] == self._numbers[stop - 1] + 1:
                stop += 1
            number = self._begin_pass()
            for episode in self._run(self._numbers[at], self._numbers[stop - 1] + 1):
                at += 1
                yield episode
                if self._passes[0] != number:
                    break

    def _position(self, index: Any) -> int:
        try:
            at = operator.index(index)
        except TypeError:
            raise TypeError(f"an index must be an integer, a slice or a list of integers, not {index!r}") from None
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} is out of range for {len(self)} episodes")
        return at % len(self)

    def _begin_pass(self) -> int:
        self._passes[0] += 1
        return self._passes[0]

    def _read(self, number: int) -> StoredEpisode:
        self._begin_pass()
        (episode,) = self._run(number, number + 1)
        return episode

    def _run(self, first: int, stop: int) -> Iterator[StoredEpisode]:
        """Yields the episodes `first` to `stop` of all sources together."""
        for i, source in enumerate(self._sources):
            begin, end = int(self._bounds[i]), int(self._bounds[i + 1])
            a, b = max(first, begin), min(stop, end)
            if a < b:
                yield from self._episodes(source, self._last_rows[i], a - begin, b - begin)

    def _episodes(self, source: Source, last_rows: LastRows | None, first: int, stop: int) -> Iterator[StoredEpisode]:
        number = first
        # The threads end when this generator does. Do not wait for them: the garbage collector may close it anywhere.
        threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-open")
        for steps, metadata in _whole_episodes(source.piece(first, stop).blocks()):
            last = None if last_rows is None else bool(last_rows.is_step[number])
            count = len(next(iter(steps.values()))) if steps else 0
            number += 1
            steps, metadata = self._steps.decode(steps, threads), self._metadata.decode(metadata, threads)
            yield StoredEpisode(
                unflatten({path: as_array(column) for path, column in steps.items()}),
                unflatten({path: as_array(column)[0] for path, column in metadata.items()}),
                count,
                last,
            )
        if number != stop:
            raise DamagedDataError(f"states {stop - first} episodes, but {number - first} were read", file=source.label)

    def close(self) -> None:
        """Closes the files. Episodes that were read stay valid."""
        self._stack.close()

    def __enter__(self) -> OpenDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.info.name or ", ".join(source.label for source in self._sources)
        return f"OpenDataset({name!r}, {len(self):,} episodes)"


def open(  # Named like the built-in, for `kabuki_rlds.open`.
    path: StrPath | Sequence[StrPath],
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    last_row: LastRow | None = None,
) -> OpenDataset:
    """Opens any source for random access to its episodes.

        with kabuki_rlds.open("hopper.hdf5") as dataset:
            print(len(dataset), dataset[0].steps["observation"].shape)

    Args:
      path: a source, or several with the same fields; anything that `convert` accepts.
      split: as for `convert`.
      data_dir: as for `convert`.
      recipe: as for `convert`.
      assume: as for `convert`.
      last_row: as for `convert`.

    Returns:
      The episodes, in the order of the sources. The fields are those of the source, plus
      `is_first`, `is_last`, `is_terminal` and `discount` if they can be derived.

    Raises:
      KabukiError: a source does not exist or cannot be read, or the fields of the sources differ.
    """
    reading = ReadingOptions(recipe, assume, None, last_row)
    stack = contextlib.ExitStack()
    try:
        opened = stack.enter_context(reading.open(path, split=split, data_dir=data_dir))
        sources = [reading.derive(source) for source in opened]
        for source in sources[1:]:
            check_equal(sources[0].schema, source.schema, sources[0].label, source.label)
        last_rows = [source.last_rows for source in opened]
        dataset = OpenDataset(sources, last_rows, range(sum(source.num_episodes for source in sources)))
        dataset._stack = stack.pop_all()
        return dataset
    finally:
        stack.close()


_Episode: TypeAlias = tuple[dict[str, Column], dict[str, Column]]


def _whole_episodes(blocks: Iterator[Block]) -> Iterator[_Episode]:
    """Yields (step columns, metadata columns) of each episode."""
    parts: list[dict[str, Column]] = []
    metadata: dict[str, Column] | None = None
    for block in blocks:
        for number, rows in block.episode_slices():
            if number >= 0:
                if metadata is not None:
                    yield _concatenate(parts), metadata
                metadata = {path: column[number : number + 1] for path, column in block.metadata.items()}
                parts = []
            parts.append({path: column[rows] for path, column in block.steps.items()})
    if metadata is not None:
        yield _concatenate(parts), metadata


def _concatenate(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    return {path: concatenate([part[path] for part in parts]) for path in parts[0]} if parts else {}
