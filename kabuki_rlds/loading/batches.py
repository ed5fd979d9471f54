"""Batches of samples as NumPy arrays, in order or shuffled, in bounded memory.

There are three ways to come by the rows of a batch:

* in order, rows are read span by span;
* shuffled, the columns are held in memory where they fit;
* else it looks ahead in the shuffled order, as far as fits, and reads each chunk
  that is needed on the way once.

Files are read in a thread of its own, ahead of whoever takes the batches.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.last_row import LastRow
from kabuki_rlds.data.nested_arrays import as_array, unflatten
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.sample_order import Permutation
from kabuki_rlds.loading.samples import SampleIndex, Samples
from kabuki_rlds.loading.table import Table, Take, within
from kabuki_rlds.loading.table_episodes import Episodes

#: Columns that take no more than this are held in memory to be shuffled.
HELD_BYTES = 1 << 30
#: What is looked ahead in a shuffled order takes about this much: half is served while the other is read.
LOOK_AHEAD_BYTES = 256 << 20
#: Rows that are read at once in order, and batches that are made at once, take about this much.
BLOCK_BYTES = 16 << 20
#: More batches at once, or more rows, do not make it faster.
_BLOCK_BATCHES = 256
_SPAN_ROWS = 1 << 16
#: Rows are read in one span unless it has so many times the rows that are needed.
_SPARSE = 4

_T = TypeVar("_T")
_Blocks: TypeAlias = Generator[dict[str, Column], None, None]
_Span: TypeAlias = tuple[np.ndarray, Episodes, Callable[[], Take]]


class Batches:
    """Batches of samples; each `iter` serves all of them anew.

    A batch is a nested dict, as RLDS steps are, of NumPy arrays whose first axis is
    that of the batch. Rows that differ in shape are an object array of arrays; text is
    `bytes`. The last batch of each epoch has what is left. Arrays are never written to
    again, so they may be kept and changed.

    Files are opened when it is iterated, so it can be pickled, and passed on to a
    process that is forked.

    Args:
      paths: the files.
      stored: the step fields to read, which the files must still have.
      returns: what to serve in the place of rewards and discounts; None is these.
      samples: what is served.
      batch_size: samples in a batch.
      shuffle: serve in a random order, in which every sample comes once an epoch.
      seed: of the order; None is another one at each iteration.
      epochs: how often all samples are served; None is without end.
      row_nbytes: about how many bytes a row of the stored fields takes.
      last_row: what the last row of each episode is; None is what the files state.
    """

    def __init__(
        self,
        paths: Sequence[str],
        stored: Mapping[str, Field],
        returns: Returns | None,
        samples: Samples,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        epochs: int | None,
        row_nbytes: int,
        last_row: LastRow | None = None,
    ):
        self._paths, self._stored, self._returns = paths, stored, returns
        self._shuffle, self._seed, self._epochs = shuffle, seed, epochs
        self._last_row = last_row
        self._samples = samples
        self._held: tuple[object, dict[str, Column]] | None = None
        self._images: ImageDecoder | None = None
        self.batch_size = batch_size
        self.lead = samples.lead
        self.fields = {path: decoded(field) for path, field in samples.fields.items()}
        # What is not known of text is told by how it is stored, and what images are once decoded by their fields.
        known = sum(field.row_nbytes or 0 for field in self.fields.values())
        sample_nbytes = max(known, row_nbytes) * math.prod(self.lead)
        fits = BLOCK_BYTES // max(sample_nbytes * batch_size, 1)
        varies = not all(field.is_fixed for field in self.fields.values())
        #: How many batches `blocks` gives at once; one where rows differ in shape.
        self.per_block = 1 if varies else max(1, min(_BLOCK_BATCHES, fits))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks():
            rows = math.prod(self.lead)
            count = len(next(iter(block.values()))) // rows
            arrays = {path: as_array(column, self.lead) for path, column in block.items()}
            for start in range(0, count, self.batch_size):
                yield unflatten({path: array[start : start + self.batch_size] for path, array in arrays.items()})

    def blocks(self) -> Iterator[dict[str, Column]]:
        """Several batches at once, end to end: path to a column of `prod(lead)` rows a sample.

        All hold `per_block` batches but the last ones of an epoch, and of what is looked ahead.

        Raises:
          KabukiError: a file cannot be read, or has other fields than when it was loaded.
        """
        with contextlib.closing(_ahead(self._blocks())) as blocks:
            yield from blocks

    def _blocks(self) -> _Blocks:
        with Table(self._paths, self._unchanged, self._returns, self._last_row, quiet=True) as table:
            index = SampleIndex(table.episodes, self._samples)
            if not len(index):
                return
            if self._images is None:
                self._images = ImageDecoder(self._samples.fields, ", ".join(self._paths))
            seed = secrets.randbits(128) if self._seed is None else self._seed
            for epoch in itertools.count() if self._epochs is None else range(self._epochs):
                if self._shuffle:
                    order = Permutation(len(index), (seed, epoch))
                    columns = self._hold(table)
                    gathered = (
                        self._on_disk(table, index, order) if columns is None else self._held_in(columns, index, order)
                    )
                else:
                    gathered = self._in_order(table, index)
                with contextlib.closing(gathered):
                    for block in gathered:
                        yield self._samples.finish(self._decode(block, table))

    def _decode(self, block: dict[str, Column], table: Table) -> dict[str, Column]:
        assert self._images is not None
        try:
            return self._images.decode(block, table.threads)
        except KabukiError:
            # A block has rows of several files. Each file is read to name the one that is damaged, and the episode.
            for path in self._paths:
                with KabukiSource(path, quiet=True) as source:
                    for _ in source.blocks():
                        signals.check()
            raise

    def _unchanged(self, schema: Schema, path: str) -> list[str]:
        if any(schema.steps.get(field) != stored for field, stored in self._stored.items()):
            raise KabukiError(f"{path}: was changed since it was loaded; load it again")
        return list(self._stored)

    def _in_order(self, table: Table, index: SampleIndex) -> _Blocks:
        batches = min(BLOCK_BYTES // table.row_nbytes, _SPAN_ROWS) // self.batch_size
        parts = _parts(len(index), self.batch_size * max(batches, 1))
        spans = (self._span(table, index, start, stop) for start, stop in parts)
        following = next(spans, None)
        while following is not None:
            # The next begins to be read before the samples of this one are put together.
            (anchors, episodes, begun), following = following, next(spans, None)
            take = begun()
            for a, b in _parts(len(anchors), self.batch_size * self.per_block):
                yield self._samples.gather(take, anchors[a:b], episodes[a:b])

    def _span(self, table: Table, index: SampleIndex, start: int, stop: int) -> _Span:
        """The anchors of some consecutive samples, their episodes, and what waits for their rows."""
        anchors, episodes = index.run(start, stop)
        first, end = int(anchors[0]), int(min(anchors[-1] + self._samples.reach + 1, episodes.ends[-1]))
        if end - first > _SPARSE * (stop - start + self._samples.reach):
            return anchors, episodes, lambda: table.take
        rows = table.begin(first, end)
        return anchors, episodes, lambda: within(rows(), first)

    def _held_in(self, columns: dict[str, Column], index: SampleIndex, order: Permutation) -> _Blocks:
        take = within(columns)
        for start, stop in _parts(len(index), self.batch_size * self.per_block):
            yield self._samples.gather(take, *index.locate(order[start:stop]))

    def _on_disk(self, table: Table, index: SampleIndex, order: Permutation) -> _Blocks:
        batches = LOOK_AHEAD_BYTES // 2 // (table.row_nbytes * self._samples.rows) // self.batch_size
        parts = _parts(len(index), self.batch_size * max(batches, 1))
        pieces = (self._samples.gather(table.take, *index.locate(order[start:stop])) for start, stop in parts)
        rows = math.prod(self.lead)
        with contextlib.closing(_ahead(pieces)) as ahead:
            for piece in ahead:
                count = len(next(iter(piece.values()))) // rows
                for a, b in _parts(count, self.batch_size * self.per_block):
                    yield {path: column[a * rows : b * rows] for path, column in piece.items()}

    def _hold(self, table: Table) -> dict[str, Column] | None:
        """All columns in memory, read once and kept; None where they take too much."""
        if table.row_nbytes * table.num_rows > HELD_BYTES:
            return None
        stats = [os.stat(path) for path in self._paths]
        version = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        if self._held is None or self._held[0] != version:
            self._held = version, table.load()
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None, "_images": None}


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _ahead(items: Generator[_T, None, None]) -> Generator[_T, None, None]:
    """The same items, each made in a thread while the one before is used."""
    end: Any = object()
    with concurrent.futures.ThreadPoolExecutor(1, "kabuki-ahead") as thread:
        made = thread.submit(next, items, end)
        try:
            while (item := made.result()) is not end:
                made = thread.submit(next, items, end)
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
            items.close()
