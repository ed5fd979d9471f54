"""Some consecutive episodes of a source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from kabuki_rlds.block import Block
from kabuki_rlds.formats.source import Size, Source


class PartOfSource:
    """The episodes `first` to `stop` of a source.

    Args:
      source: the source, which stays open.
      first: number of the first episode.
      stop: number of the one after the last.
      blocks_of: gives the blocks of such episodes. None reads the source from its beginning, and passes over what
        comes before them.
    """

    def __init__(
        self, source: Source, first: int, stop: int, blocks_of: Callable[[int, int], Iterator[Block]] | None = None
    ):
        self._source, self._first, self._stop = source, first, stop
        self._blocks_of = blocks_of
        self.schema = source.schema
        self.origins = source.origins
        self.origin_of = source.origin_of[first:stop]
        self.num_episodes = stop - first
        self.label = source.label
        self.skipped = source.skipped
        self.files = source.files
        self.last_rows = None if source.last_rows is None else source.last_rows[first:stop]

    def size(self) -> Size:
        return self._source.size()

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        if self._blocks_of is not None:
            yield from self._blocks_of(self._first, self._stop)
            return
        before = 0
        for block in self._source.blocks(only):
            count = block.num_episodes
            first, stop = (min(max(number - before, 0), count) for number in (self._first, self._stop))
            # The rows up to the first start belong to the episode that an earlier block began.
            with_head = self._first < before <= self._stop
            starts = [*block.starts.tolist(), block.num_steps]
            start, end = 0 if with_head else starts[first], starts[stop]
            if with_head or first < stop:
                yield Block(
                    {path: column[start:end] for path, column in block.steps.items()},
                    end - start,
                    block.starts[first:stop] - start,
                    {path: column[first:stop] for path, column in block.metadata.items()},
                )
            before += count
            if before > self._stop:
                return

    def piece(self, first: int, stop: int) -> PartOfSource:
        return PartOfSource(self._source, self._first + first, self._first + stop, self._blocks_of)

    def pieces(self, num_bytes: int) -> list[PartOfSource]:
        return [self]

    def close(self) -> None:
        """The source is closed by its owner."""
