"""A map-style dataset: samples by index, for PyTorch's `DataLoader`, Grain, or any loop."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from kabuki_rlds.data.block import Column, take
from kabuki_rlds.data.last_row import LastRow, check_choice
from kabuki_rlds.data.nested_arrays import as_array, unflatten
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError, MissingDependencyError
from kabuki_rlds.files.paths import StrPath, absolute_paths
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.loading.offsets import Offsets, OffsetSamples, Pad, check_pad, offset_windows
from kabuki_rlds.loading.open_dataset import StoredEpisode
from kabuki_rlds.loading.sample_order import check_rank
from kabuki_rlds.loading.samples import SampleIndex
from kabuki_rlds.loading.table import Table, unchanged
from kabuki_rlds.loading.table_episodes import Episodes

EPISODE_INDEX = "episode_index"
STEP_INDEX = "step_index"
EPISODE_METADATA = "episode_metadata"

#: Held while the files of a dataset are opened.
_opening = threading.Lock()


def _renew_lock() -> None:
    """In a forked process: another thread of the parent may have held the lock."""
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class _OpenTable:
    """Opens the table of some files on first use, once in each process."""

    def __init__(self, paths: Sequence[str], stored: Mapping[str, Field], metadata: Sequence[str], last_row: Any):
        self.paths, self.stored, self.metadata, self.last_row = paths, stored, metadata, last_row
        self._opened: tuple[int, Table, ImageDecoder, dict[str, Column]] | None = None

    def get(self) -> tuple[Table, ImageDecoder, dict[str, Column]]:
        """(table, decoder of its images, requested metadata of all episodes)."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with _opening:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    opened = self._opened = (os.getpid(), *self._open())
        return opened[1:]

    def _open(self) -> tuple[Table, ImageDecoder, dict[str, Column]]:
        table = Table(self.paths, unchanged(self.stored, "open"), None, self.last_row, quiet=True)
        return table, ImageDecoder(self.stored, ", ".join(self.paths)), table.metadata(self.metadata)

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class MapDataset:
    """Random access to samples: `len(ds)`, `ds[i]`, `ds[-1]`, and several at once with `ds.__getitems__([3, 1, 4])`.

    Created by `kabuki_rlds.dataset`. It can be used as PyTorch's map-style `Dataset` and as Grain's random-access
    source. It can be pickled, passed to forked or spawned workers, and used by several threads. Each process opens the
    files when it reads its first sample.

    There is a sample for each row with an action. A sample is a nested dict with the structure of an RLDS step:

        item["observation"]["image"]    (*row shape), or (offsets, *row shape) if the field has offsets
        item["action_is_pad"]           bool, (offsets,): whether the row is outside of the episode. Only with `pad`.
        item["episode_index"]           int64: index of the episode, from 0, over all files
        item["step_index"]              int64: index of the step in its episode, from 0
        item["episode_metadata"]        nested dict of the requested metadata

    Attributes:
      fields: path to field, for the step fields of a sample, without the axis for offsets. Images are decoded.
    """

    def __init__(
        self,
        files: _OpenTable,
        samples: OffsetSamples,
        episodes: Episodes,
        numbers: np.ndarray,
        stride: tuple[int, int] = (0, 1),
    ):
        self._files, self._samples = files, samples
        self._episodes, self._numbers, self._stride = episodes, numbers, stride
        self.fields = {path: decoded(field) for path, field in files.stored.items()}
        self._index = SampleIndex(episodes, samples)
        start, step = stride
        self._count = max(-(-(len(self._index) - start) // step), 0)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            position = operator.index(index)
        except TypeError:
            raise TypeError(f"an index must be an integer, not {index!r}; __getitems__ takes several") from None
        return self.__getitems__([position])[0]

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads the samples with the given indices. Each chunk of a file is read at most once."""
        if not len(indices):
            return []
        columns = self._columns(self._positions(indices))
        return [unflatten({path: column[i] for path, column in columns.items()}) for i in range(len(indices))]

    #: The name that Grain uses to read several items.
    _getitems = __getitems__

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        files = self._files.paths[0] if len(self._files.paths) == 1 else f"{len(self._files.paths)} files"
        return f"MapDataset({files!r}, {len(self):,} samples, {len(self._episodes):,} episodes)"

    def _positions(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        found = np.asarray(indices)
        if found.dtype.kind not in "iu" or found.ndim != 1:
            raise TypeError(f"indices must be a list of integers, not {indices!r}")
        wrong = np.flatnonzero((found < -self._count) | (found >= self._count))
        if len(wrong):
            raise IndexError(f"index {found[wrong[0]]} is out of range for {self._count} samples")
        start, step = self._stride
        return start + (found.astype(np.int64) % self._count) * step

    def _columns(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Path to the values of the samples at the given positions: (samples, …)."""
        anchors, episodes = self._index.locate(positions)
        table, images, metadata = self._files.get()
        columns = self._samples.gather(lambda paths, rows: self._decoded(table, images, paths, rows), anchors, episodes)
        made = {
            path: as_array(column, self._samples.leads[path]) for path, column in self._samples.finish(columns).items()
        }
        made[EPISODE_INDEX] = numbers_of = self._numbers[self._index.which(positions)]
        made[STEP_INDEX] = anchors - episodes.starts
        for path, column in metadata.items():
            made[f"{EPISODE_METADATA}/{path}"] = as_array(take(column, numbers_of))
        return made

    def _decoded(self, table: Table, images: ImageDecoder, paths: Sequence[str], rows: np.ndarray) -> dict[str, Column]:
        try:
            return images.decode(table.take(paths, rows), table.threads)
        except MissingDependencyError:
            raise
        except KabukiError:
            # Decode the rows one by one, to name the damaged one.
            for row in np.unique(rows).tolist():
                self._check_row(table, images, paths, row)
            raise

    def _check_row(self, table: Table, images: ImageDecoder, paths: Sequence[str], row: int) -> None:
        try:
            images.decode(table.take(paths, np.array([row])), table.threads)
        except KabukiError as e:
            file, at = table.place_of(row)
            episode = int(np.searchsorted(self._episodes.starts, row, side="right")) - 1
            step = row - int(self._episodes.starts[episode])
            why = str(e).removeprefix(f"{', '.join(self._files.paths)}: ")
            raise DamagedDataError(
                f"episode {self._numbers[episode]}: row {at} (step {step}): {why}", file=file, rows=range(at, at + 1)
            ) from e

    @property
    def episodes(self) -> EpisodeList:
        """The complete episodes of this dataset: `ds.episodes[0].steps["observation"]`."""
        return EpisodeList(self)

    def split(
        self, fraction: float, *, seed: int = 0, by: Literal["episode"] = "episode"
    ) -> tuple[MapDataset, MapDataset]:
        """Splits the episodes randomly into two datasets, for example for training and validation.

        Args:
          fraction: the fraction of episodes in the first dataset, between 0 and 1. Both get at least one episode.
          seed: the random seed. The same seed gives the same split.
          by: "episode", the only option: steps of the same episode are similar, so they stay together.

        Raises:
          InvalidArgumentError: the fraction is not between 0 and 1, or there are fewer than two episodes.
        """
        if by != "episode":
            raise InvalidArgumentError(f"by is {by!r}, expected 'episode'")
        if not 0 < fraction < 1:
            raise InvalidArgumentError(f"fraction is {fraction}, expected a number between 0 and 1")
        count = len(self._episodes)
        if count < 2:
            raise InvalidArgumentError(f"a dataset with {count} episodes cannot be split by episode")
        if self._stride != (0, 1):
            raise InvalidArgumentError("split the dataset first, then take a shard of each part")
        order = np.random.default_rng(seed).permutation(count)
        cut = min(max(round(fraction * count), 1), count - 1)
        return self._chosen(np.sort(order[:cut])), self._chosen(np.sort(order[cut:]))

    def _chosen(self, episodes: np.ndarray) -> MapDataset:
        return MapDataset(self._files, self._samples, self._episodes[episodes], self._numbers[episodes])

    def shard(self, rank: int, world: int) -> MapDataset:
        """The samples for process `rank` of `world` processes: every `world`-th sample, starting at sample `rank`.

        Each sample is in exactly one shard. The lengths of the shards differ by at most one.

        Raises:
          InvalidArgumentError: `rank` is not between 0 and `world` - 1.
        """
        check_rank(rank, world)
        start, step = self._stride
        return MapDataset(
            self._files,
            self._samples,
            self._episodes,
            self._numbers,
            (start + int(rank) * step, step * int(world)),
        )

    def close(self) -> None:
        """Closes the files in this process. The next sample opens them again."""
        self._files.close()


class EpisodeList(Sequence[StoredEpisode]):
    """The episodes of a `MapDataset`. An episode is read when it is accessed."""

    def __init__(self, dataset: MapDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset._episodes)

    @overload
    def __getitem__(self, index: int) -> StoredEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredEpisode]: ...

    def __getitem__(self, index: int | slice) -> StoredEpisode | list[StoredEpisode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} is out of range for {len(self)} episodes")
        dataset, at = self._dataset, at % len(self)
        episodes = dataset._episodes
        start, end = int(episodes.starts[at]), int(episodes.ends[at])
        table, images, metadata = dataset._files.get()
        columns = dataset._decoded(table, images, tuple(dataset.fields), np.arange(start, end))
        number = dataset._numbers[at : at + 1]
        return StoredEpisode(
            unflatten({path: as_array(column) for path, column in columns.items()}),
            unflatten({path: as_array(take(column, number))[0] for path, column in metadata.items()}),
            end - start,
            bool(episodes.action_ends[at] == end),
        )

    def __repr__(self) -> str:
        return f"EpisodeList({len(self):,} episodes)"


def dataset(
    paths: StrPath | Sequence[StrPath],
    *,
    fields: str | Sequence[str] | None = None,
    offsets: Mapping[str, Offsets] | None = None,
    pad: Pad | None = None,
    episode_metadata: str | Sequence[str] = (),
    last_row: LastRow | None = None,
) -> MapDataset:
    """Opens Kabuki files as a map-style dataset.

        ds = kabuki_rlds.dataset("robot.hdf5", offsets={"observation/image": [-1, 0], "action": range(16)}, pad="edge")
        loader = torch.utils.data.DataLoader(ds, batch_size=256, shuffle=True, num_workers=4)

    Args:
      paths: a Kabuki file, or several with the same fields.
      fields: the step fields to read, by path (`observation/image`) or by group (`observation`). None reads all.
      offsets: path of a field or group to the offsets at which it is read, relative to the step of the sample.
        Integers are steps. Floats are seconds; the files must then have the attribute `rate_hz`. A field without
        offsets is read only at the step itself.
      pad: how to fill rows outside of the episode: "edge" repeats the first or last valid row, "zero" uses zeros.
        None skips samples with such rows. The valid rows of `action`, `reward` and `discount` are the rows with an
        action; those of other fields are all rows of the episode.
      episode_metadata: the episode fields to add to each sample, by path or by group.
      last_row: whether the last row of each episode is a "step" or only an "observation". None takes what the files
        state, and "observation" if they state nothing.

    Raises:
      InvalidArgumentError: an argument is invalid, or no episode is long enough for the offsets.
      KabukiError: a file cannot be read, does not have a field, or its fields differ from those of the first file.
    """
    names = absolute_paths(paths, "paths")
    check_pad(pad)
    check_choice(last_row)
    with Table(names, lambda schema, path: schema.select(fields, path), None, last_row) as table:
        metadata = table.select_metadata(episode_metadata)
        samples = OffsetSamples(table.stored, offset_windows(table, offsets or {}, names[0]), pad)
        samples.check_long_enough(table.episodes, names[0])
        return MapDataset(
            _OpenTable(names, table.stored, metadata, last_row),
            samples,
            table.episodes,
            np.arange(len(table.episodes)),
        )
