"""The episodes of one or more files of demonstrations as one source."""

from __future__ import annotations

import concurrent.futures
import copy
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged, as_ragged, nbytes
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.data.skipped_episodes import NothingLeftError, report
from kabuki_rlds.data.source import Origin, Size
from kabuki_rlds.data.split_syntax import ALL, WHOLE, select_episodes
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.demos.assumptions import complete_assumptions, repeats_last_observation
from kabuki_rlds.formats.demos.block_builder import BlockBuilder
from kabuki_rlds.formats.demos.demo_episode import DemoEpisode
from kabuki_rlds.formats.demos.demo_files import DemoFiles, reading_as
from kabuki_rlds.formats.demos.field_union import FieldUnion
from kabuki_rlds.formats.demos.layout import DemoOptions, EpisodeLayout
from kabuki_rlds.formats.demos.survey import Survey, SurveyedEpisode
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS
from kabuki_rlds.images.image_columns import ImageColumns

#: The approximate size of a block, and of the sample that `size` reads.
_BLOCK_BYTES = 8 << 20
_SAMPLE_BYTES = 1 << 20
#: The most rows that are read together.
_MOST_ROWS = 1 << 16


class DemosSource:
    """The episodes of one or more files in one layout, in order.

    The constructor surveys all episodes. Blocks are then read from the files, of which one is open at a time.

    Args:
      layout: the layout of the files.
      paths: the files.
      options: how they are read.

    Raises:
      KabukiError: a file or an episode cannot be read, episodes do not fit each other, there is no such split, or an
        assumption cannot apply.
    """

    def __init__(self, layout: EpisodeLayout, paths: Sequence[str], options: DemoOptions):
        self._layout = layout
        self._assume = complete_assumptions(layout.name, layout.assumptions, options.assume)
        self._files = DemoFiles(layout)
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        try:
            self._open(paths, options)
        except BaseException:
            self.close()
            raise

    def _open(self, paths: Sequence[str], options: DemoOptions) -> None:
        survey = Survey(self._layout, self._files, paths, self._assume, asked=options.asked, skip_bad=options.skip_bad)
        self._episode_fields = survey.episode_fields
        self._paths = survey.paths
        self.skipped = survey.skipped
        self.label = _label(self._paths)
        if not survey.episodes:
            raise NothingLeftError(self.label, self.skipped)
        report(self.label, self.skipped)
        self._set_episodes(
            survey.episodes if options.split is None else self._episodes_of_split(options.split, survey.episodes)
        )
        steps, metadata = FieldUnion("step field", of_steps=True), FieldUnion("episode field", of_steps=False)
        for episode in self._episodes:
            steps.add(episode.steps, episode.name, episode.blank)
            metadata.add(episode.metadata, episode.name)
        steps.finish(self.label)
        metadata.finish(self.label)
        self._fields = steps.fields
        self.files = [os.path.abspath(file) for path in self._paths for file in self._layout.files(path)]
        self.origins = [
            Origin(os.path.realpath(path), split=options.split or "", format=self._layout.name) for path in self._paths
        ]
        decode = self._fields if options.images == "arrays" else ()
        self._images = ImageColumns(self._fields, self.label, decode=decode, like_headers=self._fields)
        self.schema = Schema(
            dict(sorted(self._images.fields.items())), dict(sorted(metadata.fields.items())), info=survey.info
        )

    def _set_episodes(self, episodes: Sequence[SurveyedEpisode]) -> None:
        self._episodes = episodes
        self.num_episodes = len(episodes)
        self.num_steps = sum(episode.length for episode in episodes)
        self.last_rows: LastRows | None = self._last_rows()

    def _last_rows(self) -> LastRows:
        is_step = np.array([episode.last_is_step for episode in self._episodes], bool)
        reasons = []
        if is_step.any():
            reasons.append(f"{self._layout.name} data without an observation after the last action")
        if not is_step.all():
            reasons.append(
                "last_observation=repeat"
                if repeats_last_observation(self._assume)
                else f"{self._layout.name} data with the observation after it"
            )
        return LastRows(is_step, "; ".join(reasons))

    def _episodes_of_split(self, split: str, episodes: Sequence[SurveyedEpisode]) -> list[SurveyedEpisode]:
        """Returns the episodes of a mask, or of a part of one.

        Raises:
          SplitError: there is no such mask.
        """
        masks = sorted({mask for episode in episodes for mask in episode.masks})
        numbers = {mask: np.flatnonzero([mask in episode.masks for episode in episodes]) for mask in masks}
        whole = np.arange(len(episodes))
        splits = {ALL: whole, **(numbers or {WHOLE: whole})}
        return [episodes[number] for number in select_episodes(split, splits, self.label)]

    def size(self) -> Size:
        sample = next(self._blocks(_SAMPLE_BYTES), None)
        num_bytes = sum(map(os.path.getsize, self.files))
        return Size(self.num_steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        yield from self._blocks(_BLOCK_BYTES)

    def _blocks(self, num_bytes: int) -> Iterator[Block]:
        sizes = [field.row_nbytes for field in self.schema.steps.values()]
        most_rows = max(1, min(_MOST_ROWS, num_bytes // max(sum(size or 0 for size in sizes), 1)))
        # The size of rows that vary is known once they are read.
        rows_per_read = 1 if None in sizes else most_rows
        builder = BlockBuilder(self.schema)
        origins = {path: number for number, path in enumerate(self._paths)}
        for episode, surveyed in self._open_episodes():
            builder.start_episode(episode.metadata, origins[surveyed.path])
            start = 0
            while start < episode.length:
                signals.check()
                stop = min(start + rows_per_read, episode.length)
                columns = self._read(surveyed, episode, start, stop)
                fitting = num_bytes * (stop - start) // max(nbytes(columns.values()), 1)
                rows_per_read = max(1, min(2 * rows_per_read, fitting, most_rows))
                builder.add_rows(columns, stop - start)
                start = stop
                if builder.nbytes >= num_bytes:
                    yield builder.build()
        if builder.num_steps:
            yield builder.build()

    def _open_episodes(self) -> Iterator[tuple[DemoEpisode, SurveyedEpisode]]:
        """Opens the episodes one after the other.

        Raises:
          KabukiError: a file changed since the survey.
        """
        remaining = iter(self._episodes)
        wanted = next(remaining, None)
        while wanted is not None:
            path, previous = wanted.path, -1
            with reading_as(self._layout, path):
                found = enumerate(self._layout.episodes(self._files.open(path), self._assume, self._episode_fields))
                # A split may list episodes in another order than the file. Then the file is read again from its start.
                while wanted is not None and wanted.path == path and wanted.number > previous:
                    previous = wanted.number
                    episode = next((each for number, each in found if number == previous), None)
                    if not isinstance(episode, DemoEpisode) or episode.length != wanted.length:
                        self._files.check_unchanged(path, has_same_episodes=False)
                    assert isinstance(episode, DemoEpisode)
                    yield episode, wanted
                    wanted = next(remaining, None)
            self._files.check_unchanged(path)

    def _read(self, surveyed: SurveyedEpisode, episode: DemoEpisode, start: int, stop: int) -> dict[str, Column]:
        """Reads rows `start` to `stop` of all step fields."""
        columns: dict[str, Column] = {}
        for path, field in self._fields.items():
            rows = episode.steps[path]
            if field.encoded and not rows.field.encoded:
                # All rows are empty: the image files of this episode are missing.
                columns[path] = _empty_files(field, stop - start)
                continue
            try:
                column = rows.read(start, stop, self._threads)
            except READ_ERRORS as e:
                raise DamagedDataError(
                    f"{surveyed.label}: field {path!r}: rows {start} to {stop - 1} cannot be read: {e}",
                    file=surveyed.path,
                    field=path,
                    rows=range(start, stop),
                ) from e
            columns[path] = column if field.encoded else _cast(column, field)
        return self._images.serve(columns, lambda row: (surveyed.path, surveyed.label, start + row), self._threads)

    def piece(self, first: int, stop: int) -> DemosSource:
        return self.select(np.arange(first, stop))

    def pieces(self, num_bytes: int) -> list[DemosSource]:
        return [self]

    def select(self, episodes: np.ndarray) -> DemosSource:
        """Returns a source of the episodes with these numbers, in this order. It is usable while this one is open."""
        part = copy.copy(self)
        part._set_episodes([self._episodes[number] for number in episodes.tolist()])
        return part

    def record_of(self, episode: int) -> tuple[str, int]:
        return self._episodes[episode].path, self._episodes[episode].number

    def name_of(self, episode: int) -> str:
        return self._episodes[episode].name

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._files.close()


def _label(paths: Sequence[str]) -> str:
    """Returns a name for all files together, for messages."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]} ({len(paths):,} files)"


def _empty_files(field: Field, count: int) -> Column:
    """Returns rows of empty image files."""
    if not field.is_list_of_images:
        return np.full(count, b"", object)
    files = field.shape[0] or 1
    return Ragged(np.full(count * files, b"", object), np.full((count, 1), files, np.int64))


def _cast(column: Column, field: Field) -> Column:
    """Converts rows of one episode to the dtype and form of the field of all episodes."""
    if not isinstance(column, np.ndarray):
        return column
    column = column.astype(field.dtype, copy=False)
    return as_ragged(column) if None in field.shape else column
