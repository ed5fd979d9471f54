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
import dataclasses
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
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.loading.ahead import ahead
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.sample_order import Order, Permutation
from kabuki_rlds.loading.samples import SampleIndex, Samples
from kabuki_rlds.loading.table import Table, Take, changed, unchanged, within
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

    `state` gives the position of an iteration, which a new loader can continue from:

        batches = kabuki_rlds.load_steps("hopper.hdf5", 256, shuffle=True, epochs=10, as_numpy=True)
        for batch in batches:
            update(batch)
            json.dump(batches.state(), open("state.json", "w"))
        # In a new process:
        batches = kabuki_rlds.load_steps(
            "hopper.hdf5", 256, shuffle=True, epochs=10, as_numpy=True, state=json.load(open("state.json"))
        )

    The files are opened when iteration starts, so the object can be pickled and passed
    to forked processes.

    Args:
      paths: the files.
      stored: the step fields to read.
      returns: how to compute n-step returns; None serves the stored rewards and discounts.
      samples: the kind of samples.
      batch_size: the number of samples in a batch.
      order: the order of the samples. Without a seed, each iteration has a new order.
      row_nbytes: approximate size in bytes of a row of the stored fields.
      num_samples: the number of samples that the files have, for each epoch.
      last_row: whether last rows are a "step" or an "observation"; None takes what the files state.

    Raises:
      InvalidArgumentError: `order.state` is not from a loader of the same samples in the same order.
    """

    def __init__(
        self,
        paths: Sequence[str],
        stored: Mapping[str, Field],
        returns: Returns | None,
        samples: Samples,
        batch_size: int,
        order: Order,
        row_nbytes: int,
        num_samples: int,
        last_row: LastRow | None = None,
    ):
        self._paths, self._stored, self._returns = paths, stored, returns
        self._order, self._last_row = order, last_row
        self._samples = samples
        self._num_samples = num_samples
        self._held: tuple[object, dict[str, Column]] | None = None
        self._images: ImageDecoder | None = None
        self.batch_size = batch_size
        self.leads = samples.leads
        #: The part of an epoch that this process serves.
        self._first, self._per_epoch = order.share.of(num_samples, batch_size)
        self._settings = {
            "num_samples": num_samples,
            "batch_size": batch_size,
            "shuffle": order.shuffle,
            **dataclasses.asdict(order.share),
        }
        #: The seed of the latest iteration, and the number of batches that it has served.
        self._used_seed, self._served = order.seed, 0
        #: Seed and number of batches that the first iteration starts from.
        self._start = None if order.state is None else self._check_state(order.state)
        self.fields = {path: decoded(field) for path, field in samples.fields.items()}
        # `row_nbytes` covers text, whose size the fields do not give; the fields give the size of decoded images.
        known = sum((field.row_nbytes or 0) * math.prod(self.leads[path]) for path, field in self.fields.items())
        sample_nbytes = max(known, row_nbytes * max(map(math.prod, self.leads.values()), default=1))
        fits = BLOCK_BYTES // max(sample_nbytes * batch_size, 1)
        varies = not all(field.is_fixed for field in self.fields.values())
        #: The number of batches in a block of `blocks`; 1 if rows differ in shape.
        self.per_block = 1 if varies else max(1, min(_BLOCK_BATCHES, fits))

    @property
    def num_batches(self) -> int | None:
        """The number of batches of one iteration; None if it does not end."""
        per_epoch = -(-self._per_epoch // self.batch_size)
        if self._order.epochs is None:
            return None if per_epoch else 0
        return per_epoch * self._order.epochs

    def __len__(self) -> int:
        """The number of batches of one iteration.

        Raises:
          TypeError: the iteration does not end (`epochs=None`).
        """
        if self.num_batches is None:
            raise TypeError("with epochs=None the iteration does not end, so it has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start, self._start = self._next_start(), None
        self._used_seed, self._served = start
        for block in self.blocks(start):
            arrays = {path: as_array(column, self.leads[path]) for path, column in block.items()}
            for at in range(0, self.num_samples_of(block), self.batch_size):
                self._served += 1
                yield unflatten({path: array[at : at + self.batch_size] for path, array in arrays.items()})

    def _next_start(self) -> tuple[int | None, int]:
        """Returns the seed, and the number of batches to skip, of the next iteration."""
        start = self._start or (self._order.seed, 0)
        return (secrets.randbits(128), 0) if self._order.shuffle and start[0] is None else start

    def state(self) -> dict[str, Any]:
        """The position of the latest iteration: after the last batch that it returned.

        Returns:
          a dict of numbers and booleans, which JSON can store, for the argument `state` of the functions that load
          batches.
        """
        return {"batches": self._served, "seed": self._used_seed, **self._settings}

    def _check_state(self, state: Mapping[str, Any]) -> tuple[int | None, int]:
        """Returns the seed and the number of batches of a state."""
        expected = {"batches": 0, "seed": None, **self._settings}
        if not isinstance(state, Mapping) or set(state) != set(expected):
            raise InvalidArgumentError("state is not what the `state` method of a loader returns")
        for name, value in self._settings.items():
            if state[name] != value:
                raise InvalidArgumentError(
                    f"state is from a loader with {name}={state[name]!r}, but this one has {value!r}"
                )
        seed, served = state["seed"], state["batches"]
        given = self._order.seed
        if given is not None and seed != given:
            raise InvalidArgumentError(f"state is from a loader with seed={seed!r}, but this one has {given!r}")
        if not isinstance(seed, int | None) or (seed or 0) < 0:
            raise InvalidArgumentError(f"state has seed={seed!r}, expected an integer >= 0")
        if not isinstance(served, int) or served < 0 or (self.num_batches is not None and served > self.num_batches):
            raise InvalidArgumentError(f"state is after {served!r} batches, but an iteration has {self.num_batches}")
        return seed, served

    def num_samples_of(self, block: Mapping[str, Column]) -> int:
        """The number of samples in a block."""
        path, column = next(iter(block.items()))
        return len(column) // math.prod(self.leads[path])

    def part(self, block: Mapping[str, Column], start: int, stop: int) -> dict[str, Column]:
        """The samples `start` to `stop` of a block."""
        rows = {path: math.prod(self.leads[path]) for path in block}
        return {path: column[start * rows[path] : stop * rows[path]] for path, column in block.items()}

    def blocks(self, start: tuple[int | None, int] | None = None) -> Iterator[dict[str, Column]]:
        """Yields several consecutive batches together: path to a column with `prod(leads[path])` rows per sample.

        A block holds `per_block` batches; the last block of an epoch or of a read-ahead may hold fewer.

        Args:
          start: the seed, and the number of batches to skip. None takes those of the loader.

        Raises:
          KabukiError: a file cannot be read, or its fields have changed since it was loaded.
        """
        with contextlib.closing(ahead(self._blocks(start or self._next_start()))) as blocks:
            yield from blocks

    def _blocks(self, start: tuple[int | None, int]) -> _Blocks:
        with Table(self._paths, unchanged(self._stored, "load"), self._returns, self._last_row, quiet=True) as table:
            index = SampleIndex(table.episodes, self._samples)
            if len(index) != self._num_samples:
                raise changed(", ".join(self._paths), "load")
            if not self._per_epoch:
                return
            if self._images is None:
                self._images = ImageDecoder(self._samples.fields, ", ".join(self._paths))
            seed, skipped_batches = start
            first, skipped = divmod(skipped_batches, -(-self._per_epoch // self.batch_size))
            for epoch in itertools.count(first) if self._order.epochs is None else range(first, self._order.epochs):
                begin = skipped * self.batch_size if epoch == first else 0
                if self._order.shuffle:
                    assert seed is not None
                    order = Permutation(len(index), (seed, epoch))
                    fits = table.row_nbytes * table.num_rows <= HELD_BYTES
                    gathered = (self._in_memory if fits else self._on_disk)(table, index, order, begin)
                else:
                    gathered = self._in_order(table, index, begin)
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

    def _in_order(self, table: Table, index: SampleIndex, begin: int) -> _Blocks:
        batches = min(BLOCK_BYTES // table.row_nbytes, _SPAN_ROWS) // self.batch_size
        parts = _parts(begin, self._per_epoch, self.batch_size * max(batches, 1))
        spans = (self._span(table, index, self._first + start, self._first + stop) for start, stop in parts)
        following = next(spans, None)
        while following is not None:
            # Start to read the next span before the samples of this one are gathered.
            (anchors, episodes, finish), following = following, next(spans, None)
            take = finish()
            for a, b in _parts(0, len(anchors), self.batch_size * self.per_block):
                yield self._samples.gather(take, anchors[a:b], episodes[a:b])

    def _span(self, table: Table, index: SampleIndex, start: int, stop: int) -> _Span:
        """(anchors, episodes, finish) of the samples `start` to `stop`. `finish` waits until their rows are read."""
        anchors, episodes = index.run(start, stop)
        reach, back = self._samples.reach, self._samples.back
        first = int(max(anchors[0] - back, episodes.starts[0]))
        end = int(min(anchors[-1] + reach + 1, episodes.ends[-1]))
        if end - first > _SPARSE * (stop - start + back + reach):
            return anchors, episodes, lambda: table.take
        rows = table.begin(first, end)
        return anchors, episodes, lambda: within(rows(), first)

    def _in_memory(self, table: Table, index: SampleIndex, order: Permutation, begin: int) -> _Blocks:
        stats = [os.stat(path) for path in self._paths]
        version = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        held = self._held[1] if self._held is not None and self._held[0] == version else None
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1, "kabuki-load") as thread:
            try:
                loading = None if held is not None else thread.submit(table.load, stop)
                is_small = table.row_nbytes * table.num_rows <= LOADED_FIRST_BYTES
                for start, end in _parts(begin, self._per_epoch, self.batch_size * self.per_block):
                    if loading is not None and (is_small or loading.done()):
                        held, loading = loading.result(), None
                        assert held is not None
                        self._held = version, held
                    take = table.take if held is None else within(held)
                    yield self._samples.gather(take, *index.locate(order[self._order.share.slice(start, end)]))
            finally:
                stop.set()

    def _on_disk(self, table: Table, index: SampleIndex, order: Permutation, begin: int) -> _Blocks:
        batches = LOOK_AHEAD_BYTES // 2 // (table.row_nbytes * self._samples.rows) // self.batch_size
        parts = _parts(begin, self._per_epoch, self.batch_size, max(batches, 1))
        slices = (order[self._order.share.slice(start, stop)] for start, stop in parts)
        pieces = (self._samples.gather(table.take, *index.locate(numbers)) for numbers in slices)
        with contextlib.closing(ahead(pieces, wait=True)) as gathered:
            for piece in gathered:
                for a, b in _parts(0, self.num_samples_of(piece), self.batch_size * self.per_block):
                    yield self.part(piece, a, b)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None, "_images": None}


def _parts(start: int, stop: int, size: int, most: int = 1) -> Iterator[tuple[int, int]]:
    """Yields ranges of 1, 2, 4, … times `size`, up to `most` times `size`. Small first ranges are read quickly."""
    times = 1
    while start < stop:
        yield start, min(start + size * times, stop)
        start, times = start + size * times, min(2 * times, most)
