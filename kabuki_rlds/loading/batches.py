"""Batches of samples as NumPy arrays, in file order or shuffled, in bounded memory.

The rows of a batch are read in one of three ways:

* in file order: consecutive rows are read in spans;
* shuffled, if the columns fit in memory: the columns are loaded once, and until then
  each batch is read from the file;
* shuffled, otherwise: the samples of many future batches are read together, so that
  each chunk of the file is read once for all of them.

A background thread reads ahead of the consumer.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.last_row import LastRow
from kabuki_rlds.data.nested_arrays import as_array, unflatten
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.loading.ahead import ahead
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.sample_order import Permutation
from kabuki_rlds.loading.samples import SampleIndex, Samples
from kabuki_rlds.loading.table import Table, Take, within
from kabuki_rlds.loading.table_episodes import Episodes

#: To shuffle, columns up to this size are loaded into memory.
HELD_BYTES = 1 << 30
#: The first batch waits for columns up to this size. Larger ones are loaded while batches are served from the file.
LOADED_FIRST_BYTES = 64 << 20
#: Size of the samples that are read ahead in shuffled order. Half of them is served while the other half is read.
LOOK_AHEAD_BYTES = 256 << 20
#: Size of the rows that are read together in file order, and of the batches that are made together.
BLOCK_BYTES = 16 << 20
#: Limits on the batches that are made together, and on the rows that are read together. More is not faster.
_BLOCK_BATCHES = 256
_SPAN_ROWS = 1 << 16
#: Rows are read as one span unless the span has more than this many times the needed rows.
_SPARSE = 4

_Blocks: TypeAlias = Generator[dict[str, Column], None, None]
_Span: TypeAlias = tuple[np.ndarray, Episodes, Callable[[], Take]]


class Batches:
    """An iterable over batches of samples. Each `iter` starts from the beginning.

    A batch is a nested dict with the structure of an RLDS step. Its values are NumPy
    arrays whose first axis is the batch. Rows of different shapes are an object array
    of arrays; text is `bytes`. The last batch of an epoch may be smaller. The arrays
    belong to the caller, who may keep and modify them.

    The files are opened when iteration starts, so the object can be pickled and passed
    to forked processes.

    Args:
      paths: the files.
      stored: the step fields to read.
      returns: how to compute n-step returns; None serves the stored rewards and discounts.
      samples: the kind of samples.
      batch_size: the number of samples in a batch.
      shuffle: whether to serve the samples in random order, each once per epoch.
      seed: the seed of the order; None means a new order at each iteration.
      epochs: the number of epochs; None means no end.
      row_nbytes: approximate size in bytes of a row of the stored fields.
      num_samples: the number of samples that the files have, for each epoch.
      last_row: whether last rows are a "step" or an "observation"; None takes what the files state.
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
        num_samples: int,
        last_row: LastRow | None = None,
    ):
        self._paths, self._stored, self._returns = paths, stored, returns
        self._shuffle, self._seed, self._epochs = shuffle, seed, epochs
        self._last_row = last_row
        self._samples = samples
        self._num_samples = num_samples
        self._held: tuple[object, dict[str, Column]] | None = None
        self._images: ImageDecoder | None = None
        self.batch_size = batch_size
        self.lead = samples.lead
        self.fields = {path: decoded(field) for path, field in samples.fields.items()}
        # `row_nbytes` covers text, whose size the fields do not give; the fields give the size of decoded images.
        known = sum(field.row_nbytes or 0 for field in self.fields.values())
        sample_nbytes = max(known, row_nbytes) * math.prod(self.lead)
        fits = BLOCK_BYTES // max(sample_nbytes * batch_size, 1)
        varies = not all(field.is_fixed for field in self.fields.values())
        #: The number of batches in a block of `blocks`; 1 if rows differ in shape.
        self.per_block = 1 if varies else max(1, min(_BLOCK_BATCHES, fits))

    @property
    def num_batches(self) -> int | None:
        """The number of batches of one iteration; None if it does not end."""
        per_epoch = -(-self._num_samples // self.batch_size)
        if self._epochs is None:
            return None if per_epoch else 0
        return per_epoch * self._epochs

    def __len__(self) -> int:
        """The number of batches of one iteration.

        Raises:
          TypeError: the iteration does not end (`epochs=None`).
        """
        if self.num_batches is None:
            raise TypeError("with epochs=None the iteration does not end, so it has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks():
            rows = math.prod(self.lead)
            count = len(next(iter(block.values()))) // rows
            arrays = {path: as_array(column, self.lead) for path, column in block.items()}
            for start in range(0, count, self.batch_size):
                yield unflatten({path: array[start : start + self.batch_size] for path, array in arrays.items()})

    def blocks(self) -> Iterator[dict[str, Column]]:
        """Yields several consecutive batches together: path to a column with `prod(lead)` rows per sample.

        A block holds `per_block` batches; the last block of an epoch or of a read-ahead may hold fewer.

        Raises:
          KabukiError: a file cannot be read, or its fields have changed since it was loaded.
        """
        with contextlib.closing(ahead(self._blocks())) as blocks:
            yield from blocks

    def _blocks(self) -> _Blocks:
        with Table(self._paths, self._unchanged, self._returns, self._last_row, quiet=True) as table:
            index = SampleIndex(table.episodes, self._samples)
            if len(index) != self._num_samples:
                raise _changed(", ".join(self._paths))
            if not len(index):
                return
            if self._images is None:
                self._images = ImageDecoder(self._samples.fields, ", ".join(self._paths))
            seed = secrets.randbits(128) if self._seed is None else self._seed
            for epoch in itertools.count() if self._epochs is None else range(self._epochs):
                if self._shuffle:
                    order = Permutation(len(index), (seed, epoch))
                    fits = table.row_nbytes * table.num_rows <= HELD_BYTES
                    gathered = (self._in_memory if fits else self._on_disk)(table, index, order)
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
            # The block has rows of several files. Read each file, to name the damaged file and episode.
            for path in self._paths:
                with KabukiSource(path, quiet=True) as source:
                    for _ in source.blocks():
                        signals.check()
            raise

    def _unchanged(self, schema: Schema, path: str) -> list[str]:
        if any(schema.steps.get(field) != stored for field, stored in self._stored.items()):
            raise _changed(path)
        return list(self._stored)

    def _in_order(self, table: Table, index: SampleIndex) -> _Blocks:
        batches = min(BLOCK_BYTES // table.row_nbytes, _SPAN_ROWS) // self.batch_size
        parts = _parts(len(index), self.batch_size * max(batches, 1))
        spans = (self._span(table, index, start, stop) for start, stop in parts)
        following = next(spans, None)
        while following is not None:
            # Start to read the next span before the samples of this one are gathered.
            (anchors, episodes, finish), following = following, next(spans, None)
            take = finish()
            for a, b in _parts(len(anchors), self.batch_size * self.per_block):
                yield self._samples.gather(take, anchors[a:b], episodes[a:b])

    def _span(self, table: Table, index: SampleIndex, start: int, stop: int) -> _Span:
        """(anchors, episodes, finish) of the samples `start` to `stop`. `finish` waits until their rows are read."""
        anchors, episodes = index.run(start, stop)
        first, end = int(anchors[0]), int(min(anchors[-1] + self._samples.reach + 1, episodes.ends[-1]))
        if end - first > _SPARSE * (stop - start + self._samples.reach):
            return anchors, episodes, lambda: table.take
        rows = table.begin(first, end)
        return anchors, episodes, lambda: within(rows(), first)

    def _in_memory(self, table: Table, index: SampleIndex, order: Permutation) -> _Blocks:
        stats = [os.stat(path) for path in self._paths]
        version = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        held = self._held[1] if self._held is not None and self._held[0] == version else None
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1, "kabuki-load") as thread:
            try:
                loading = None if held is not None else thread.submit(table.load, stop)
                is_small = table.row_nbytes * table.num_rows <= LOADED_FIRST_BYTES
                for start, end in _parts(len(index), self.batch_size * self.per_block):
                    if loading is not None and (is_small or loading.done()):
                        held, loading = loading.result(), None
                        assert held is not None
                        self._held = version, held
                    take = table.take if held is None else within(held)
                    yield self._samples.gather(take, *index.locate(order[start:end]))
            finally:
                stop.set()

    def _on_disk(self, table: Table, index: SampleIndex, order: Permutation) -> _Blocks:
        batches = LOOK_AHEAD_BYTES // 2 // (table.row_nbytes * self._samples.rows) // self.batch_size
        parts = _parts(len(index), self.batch_size, max(batches, 1))
        pieces = (self._samples.gather(table.take, *index.locate(order[start:stop])) for start, stop in parts)
        rows = math.prod(self.lead)
        with contextlib.closing(ahead(pieces, wait=True)) as gathered:
            for piece in gathered:
                count = len(next(iter(piece.values()))) // rows
                for a, b in _parts(count, self.batch_size * self.per_block):
                    yield {path: column[a * rows : b * rows] for path, column in piece.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None, "_images": None}


def _parts(count: int, size: int, most: int = 1) -> Iterator[tuple[int, int]]:
    """Yields ranges of 1, 2, 4, … times `size`, up to `most` times `size`. Small first ranges are read quickly."""
    start, times = 0, 1
    while start < count:
        yield start, min(start + size * times, count)
        start, times = start + size * times, min(2 * times, most)


def _changed(path: str) -> KabukiError:
    return KabukiError(f"{path}: was changed since it was loaded; load it again")
