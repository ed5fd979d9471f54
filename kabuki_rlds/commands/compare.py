"""Compares a Kabuki file with its sources, episode by episode."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from kabuki_rlds.data.block import Block, Column, Nested, row_splits
from kabuki_rlds.data.common_schema import can_hold, fit_block
from kabuki_rlds.data.last_row import LastRow, LastRows, joined
from kabuki_rlds.data.rules import DISCOUNT, FILLABLE, IS_TERMINAL, has_field
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.data.source import Source
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.formats.hdf5.stored_last_rows import PATH as LAST_IS_STEP
from kabuki_rlds.formats.open import open_source
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import CompletedSource

#: One hash per array of a column. The hashes do not depend on how the rows are split into blocks.
_Digest: TypeAlias = "list[hashlib.blake2b]"

#: Maximum number of episodes that a difference names.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference between a Kabuki file and its sources.

    Attributes:
      what: the field, or "episodes".
      message: the difference, in words.
      episodes: numbers of the first few episodes that differ, counted in the file. Episodes that are missing from the
        file are counted over all sources.
      count: number of episodes that differ.
    """

    what: str
    message: str
    episodes: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        if not self.count:
            return f"{self.what}: {self.message}"
        named = ", ".join(map(str, self.episodes)) + (", …" if self.count > len(self.episodes) else "")
        return f"{self.what}: {self.message} ({self.count:,} episode{'s' if self.count > 1 else ''}: {named})"


@signals.held_back()
def compare(
    file: StrPath,
    sources: StrPath | Sequence[StrPath],
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    last_row: LastRow | None = None,
    conform: bool = False,
) -> list[Difference]:
    """Compares a Kabuki file with its sources. Every value of every field is compared bit by bit.

    Fields that `convert` derived are ignored. If the file lists damaged episodes that were left out, episodes that are
    still damaged in the sources are not reported as missing.

    Args:
      file: the Kabuki file.
      sources: the sources of the conversion, in the same order.
      split: `split` of the conversion.
      data_dir: the folder in which a TFDS name is looked up.
      recipe: `recipe` of the conversion.
      assume: `assume` of the conversion.
      fill: `fill` of the conversion. It matters only with `conform`.
      last_row: `last_row` of the conversion.
      conform: `conform` of the conversion.

    Returns:
      The differences, those of the fields first. Empty if the file matches its sources.

    Raises:
      KabukiError: the file or a source cannot be read.

    Example:
      for difference in kabuki_rlds.compare("hopper.hdf5", "~/tensorflow_datasets/hopper/1.0.0"):
          print(difference.what, difference.message, difference.episodes)
    """
    with contextlib.ExitStack() as stack:
        reading = ReadingOptions(recipe, assume, last_row=last_row)
        mine = stack.enter_context(contextlib.closing(open_source(file, images="encoded")))
        keeps_files = any(field.encoded for field in (*mine.schema.steps.values(), *mine.schema.metadata.values()))
        opened = stack.enter_context(
            reading.open(
                sources,
                split=split,
                data_dir=data_dir,
                images="encoded" if keeps_files else "arrays",
                # Damaged episodes that the conversion left out are not a difference.
                skip_bad=bool(mine.skipped),
            )
        )
        # A file of format 1.0 does not state whether its last rows are steps.
        needs_decision = conform or mine.last_rows is not None
        decided = [reading.decide(source) for source in opened] if needs_decision else []
        theirs = [reading.apply_recipe(source) for source in opened]
        if conform:
            theirs = [
                _conformed(source, last_rows, fill or {}) for source, last_rows in zip(theirs, decided, strict=True)
            ]
        found, steps, metadata = _fields(mine, theirs)
        if mine.last_rows is not None:
            found += _last_rows(mine.last_rows, joined(decided))

        def fitted() -> Iterator[Block]:
            return (fit_block(block, mine.schema) for source in theirs for block in source.blocks())

        if _digest_of_all(mine.blocks(), steps, metadata) == _digest_of_all(fitted(), steps, metadata):
            return found
        # Read both again, to find the episodes that differ.
        ours = _Digests(steps, metadata)
        ours.take(mine.blocks())
        right = _Digests(steps, metadata)
        right.take(fitted())
        if [length for length, _ in ours.of] == [length for length, _ in right.of]:
            return found + _values(mine, theirs, steps, metadata, [length for length, _ in ours.of])
        return found + _episodes(ours.of, right.of)


def _conformed(source: Source, last_rows: LastRows, given: Mapping[str, float]) -> Source:
    """Returns a source after `conform`, with only the step fields that the source itself has."""
    have = source.schema.steps
    # Missing fields get a placeholder, which is not compared. Discounts and flags are derived as in `convert`.
    derived = {DISCOUNT, IS_TERMINAL} if DISCOUNT in have else {DISCOUNT}
    fill = {name: 0.0 for name in FILLABLE if name not in derived and not has_field(have, name)}
    whole = CompletedSource(source, {**fill, **given}, conform=True, last_rows=last_rows)
    steps = {path: field for path, field in whole.schema.steps.items() if path in have}
    whole.schema = dataclasses.replace(whole.schema, steps=steps)
    return whole


def _last_rows(ours: LastRows, right: LastRows) -> list[Difference]:
    """Returns a difference if the file and its sources disagree on whether last rows are steps."""
    if len(right.is_step) != len(ours.is_step):
        return []
    wrong = np.flatnonzero(right.is_step != ours.is_step)
    if not len(wrong):
        return []
    message = f"differs from the source, whose last rows are {right}"
    return [Difference(LAST_IS_STEP, message, tuple(wrong[:_NAMED].tolist()), len(wrong))]


def _fields(mine: Source, theirs: Sequence[Source]) -> tuple[list[Difference], list[str], list[str]]:
    """Returns the differences of the fields, and the names of comparable step fields and episode fields."""
    found: list[Difference] = []
    common: list[list[str]] = []
    for what, kind in (("steps", "step field"), ("metadata", "episode field")):
        ours: Mapping[str, Field] = getattr(mine.schema, what)
        kept = []
        for path in ours:
            others = [getattr(source.schema, what).get(path) for source in theirs]
            if all(other is not None and can_hold(ours[path], other) for other in others):
                kept.append(path)
            elif not (ours[path].derived and None in others):
                other = next(other for other in others if other is None or not can_hold(ours[path], other))
                says = "does not have it" if other is None else f"has {other.describe()}"
                found.append(Difference(path, f"{kind}: the file has {ours[path].describe()}, the source {says}"))
        lacking = {path: field for source in theirs for path, field in getattr(source.schema, what).items()}
        for path in sorted(lacking.keys() - ours.keys()):
            found.append(
                Difference(path, f"{kind}: the source has {lacking[path].describe()}, the file does not have it")
            )
        common.append(kept)
    return found, common[0], common[1]


def _digest_of_all(
    blocks: Iterable[Block], steps: Sequence[str], metadata: Sequence[str]
) -> tuple[int, bytes, list[list[bytes]]]:
    """Returns the number of rows, a digest of the starts of all episodes, and the digests of each field."""
    starts = hashlib.blake2b()
    of_steps: list[_Digest] = [[] for _ in steps]
    of_metadata: list[_Digest] = [[] for _ in metadata]
    num_steps = 0
    for block in blocks:
        starts.update((block.starts + num_steps).astype(np.int64).tobytes())
        num_steps += block.num_steps
        for digest, path in zip(of_steps, steps, strict=True):
            _add(digest, block.steps[path], 0, block.num_steps)
        for digest, path in zip(of_metadata, metadata, strict=True):
            _add(digest, block.metadata[path], 0, block.num_episodes)
    digests = [[part.digest() for part in digest] for digest in (*of_steps, *of_metadata)]
    return num_steps, starts.digest(), digests


class _Digests:
    """Computes the length and a digest of each episode in a stream of blocks.

    Attributes:
      of: (number of steps, digest) of each complete episode.
    """

    def __init__(self, steps: Sequence[str], metadata: Sequence[str]):
        self._steps, self._metadata = steps, metadata
        self.of: list[tuple[int, bytes]] = []

    def take(self, blocks: Iterable[Block]) -> None:
        """Adds all episodes of the blocks."""
        # An episode may continue in the next block, so each field has a separate digest.
        digests: list[_Digest] = [[] for _ in self._steps]
        length, whole = -1, list[bytes]()
        for block in blocks:
            for number, rows in block.episode_slices():
                if number >= 0:
                    if length >= 0:
                        self._end(length, digests, whole)
                    digests = [[] for _ in self._steps]
                    length, whole = 0, []
                    for path in self._metadata:
                        whole += _digests(block.metadata[path], number, number + 1)
                length += rows.stop - rows.start
                for digest, path in zip(digests, self._steps, strict=True):
                    _add(digest, block.steps[path], rows.start, rows.stop)
        if length >= 0:
            self._end(length, digests, whole)

    def _end(self, length: int, digests: Sequence[_Digest], whole: Sequence[bytes]) -> None:
        parts = [*whole, *(part.digest() for digest in digests for part in digest)]
        self.of.append((length, hashlib.blake2b(b"".join(parts), digest_size=16).digest()))


def _digests(column: Column, start: int, stop: int) -> list[bytes]:
    digest: _Digest = []
    _add(digest, column, start, stop)
    return [part.digest() for part in digest]


def _add(digest: _Digest, column: Column, start: int, stop: int) -> None:
    if start == stop:
        return
    for i, data in enumerate(_streams(column[start:stop])):
        if i == len(digest):
            digest.append(hashlib.blake2b(digest_size=16))
        digest[i].update(data)


def _streams(column: Column) -> Iterator[bytes | memoryview]:
    """Yields the bytes of each array of a column. The number of items is the same for any range of rows."""
    for array in _arrays(column):
        if array.dtype == BYTES:
            texts = array.reshape(-1).tolist()
            yield np.array([len(text) for text in texts], np.int64).data
            yield b"".join(texts)
        else:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


def _arrays(column: Column) -> Iterator[np.ndarray]:
    """Yields the arrays of a column."""
    if isinstance(column, np.ndarray):
        yield column
        return
    yield column.values
    yield from column.lengths if isinstance(column, Nested) else (column.shapes,)


def _episodes(ours: list[tuple[int, bytes]], right: list[tuple[int, bytes]]) -> list[Difference]:
    """Returns the episodes that are only in the sources, and those that are only in the file."""
    found = []
    for message, here, there in (
        ("in the source, but not in the file", right, ours),
        ("in the file, but not in the source", ours, right),
    ):
        left = collections.Counter(there)
        lost = []
        for i, episode in enumerate(here):
            if left[episode]:
                left[episode] -= 1
            else:
                lost.append(i)
        if lost:
            found.append(Difference("episodes", message, tuple(lost[:_NAMED]), len(lost)))
    if not found:
        found.append(Difference("episodes", "order differs from the source"))
    return found


def _values(
    mine: Source, theirs: Sequence[Source], steps: Sequence[str], metadata: Sequence[str], lengths: Sequence[int]
) -> list[Difference]:
    """Returns the fields that differ, with their episodes. All episodes must have equal lengths in both."""
    starts = row_splits(np.array(lengths, np.int64))
    found = []
    for kind, paths in (("step field", steps), ("episode field", metadata)):
        in_steps = kind == "step field"
        rows: dict[str, list[np.ndarray]] = {path: [] for path in paths}
        first = 0
        for ours, right, count in _aligned(
            _columns(mine.blocks(), in_steps),
            itertools.chain.from_iterable(
                _columns((fit_block(block, mine.schema) for block in source.blocks()), in_steps) for source in theirs
            ),
        ):
            for path in paths:
                rows[path].append(first + _unequal(ours[path], right[path]))
            first += count
        for path, parts in rows.items():
            wrong = np.concatenate([np.zeros(0, np.int64), *parts])
            if len(wrong):
                which = np.unique(np.searchsorted(starts, wrong, "right") - 1) if in_steps else wrong
                message = f"{kind}: {len(wrong):,} rows differ" if in_steps else f"{kind}: differs"
                found.append(Difference(path, message, tuple(which[:_NAMED].tolist()), len(which)))
    return found


_Columns: TypeAlias = dict[str, Column]


def _columns(blocks: Iterable[Block], in_steps: bool) -> Iterator[tuple[_Columns, int]]:
    """Yields the step columns, or the episode columns, and their number of rows."""
    for block in blocks:
        yield (block.steps, block.num_steps) if in_steps else (block.metadata, block.num_episodes)


def _aligned(
    ours: Iterator[tuple[_Columns, int]], right: Iterator[tuple[_Columns, int]]
) -> Iterator[tuple[_Columns, _Columns, int]]:
    """Yields equal ranges of rows of both streams, split where a block of either stream ends."""
    a: _Columns = {}
    b: _Columns = {}
    a_rows = b_rows = 0
    while True:
        while not a_rows:
            a, a_rows = next(ours, ({}, -1))
        while not b_rows:
            b, b_rows = next(right, ({}, -1))
        if a_rows < 0 or b_rows < 0:
            return
        count = min(a_rows, b_rows)
        yield _cut(a, 0, count), _cut(b, 0, count), count
        a, a_rows = _cut(a, count, a_rows), a_rows - count
        b, b_rows = _cut(b, count, b_rows), b_rows - count


def _cut(columns: _Columns, start: int, stop: int) -> _Columns:
    return {path: column[start:stop] for path, column in columns.items()}


def _unequal(ours: Column, right: Column) -> np.ndarray:
    """Returns the numbers of the rows whose bits differ: int64."""
    count = len(ours)
    if isinstance(ours, np.ndarray) and isinstance(right, np.ndarray):
        if ours.dtype == BYTES:
            differ = (ours != right).reshape(count, -1).any(axis=1)
        elif not ours.size:
            differ = np.zeros(count, bool)
        else:
            bits = [np.ascontiguousarray(rows).reshape(count, -1).view(np.uint8) for rows in (ours, right)]
            differ = (bits[0] != bits[1]).any(axis=1)
        return np.flatnonzero(differ)
    digests = []
    for column in (ours, right):
        digests.append([_digests(column, row, row + 1) for row in range(count)])
    pairs = zip(*digests, strict=True)
    return np.array([row for row, (a, b) in enumerate(pairs) if a != b], np.int64)
