"""Sources and sinks of blocks of steps. Each format has a source, and may have a sink."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import Violation
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.errors import KabukiError


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of some episodes: an entry of the file attribute `sources`.

    Attributes:
      path: the folder or file that the episodes were read from.
      name: name and version of the dataset; "" if it has none.
      split: the split that was read.
      format: "rlds", "envlogger", "kabuki", or the name of a third-party layout.
      via: the intermediate Kabuki files, newest first.
    """

    path: str
    name: str = ""
    split: str = ""
    format: str = ""
    via: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    @classmethod
    def from_json(cls, entry: Any) -> Origin:
        """Parses an entry of `sources`.

        Raises:
          ValueError: the entry is malformed.
        """
        texts = dict(entry) if isinstance(entry, dict) else {}
        via = texts.pop("via", [])
        known = {field.name for field in dataclasses.fields(cls)}
        if not ("path" in texts and texts.keys() <= known and isinstance(via, list)):
            raise ValueError(f"not a dict of {', '.join(sorted(known))}")
        if not all(isinstance(text, str) for text in (*texts.values(), *via)):
            raise ValueError("a value is not a string")
        return cls(**texts, via=tuple(via))


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a source.

    Attributes:
      steps: the number of steps.
      is_exact: whether `steps` is exact. If not, it is estimated from a sample.
      num_bytes: the size of the source on disk in bytes.
      sample: some of its steps, to estimate the size of the others; None if it has no steps.
      image_fields: the step fields whose encoded images are decoded while reading.
    """

    steps: int
    is_exact: bool
    num_bytes: int
    sample: Block | None
    image_fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Consecutive episodes that were skipped because they are damaged or empty.

    Attributes:
      path: the file of the episodes.
      record: the index of the first skipped episode in the file, from 0.
      count: the number of skipped episodes.
      why: the reason.
    """

    path: str
    record: int
    count: int
    why: str

    def __str__(self) -> str:
        last = self.record + self.count - 1
        records = f"record {self.record}" if self.count == 1 else f"records {self.record} to {last}"
        return f"{self.path}: {records}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: Any) -> Skipped:
        """Parses an entry of the file attribute `skipped`.

        Raises:
          ValueError: the entry is malformed.
        """
        known = {"path": str, "record": int, "count": int, "why": str}
        if not isinstance(entry, dict) or entry.keys() != known.keys():
            raise ValueError(f"not a dict of {', '.join(known)}")
        for name, kind in known.items():
            if type(entry[name]) is not kind:
                raise ValueError(f"{name} is {entry[name]!r}")
        return cls(**entry)


class Source(Protocol):
    """A dataset to read.

    Attributes:
      schema: the step fields and episode fields.
      origins: the origins of its episodes.
      num_episodes: the number of episodes that the source states, without the skipped ones.
      label: the name of the source for messages.
      skipped: the episodes that are skipped, or that were skipped when the source was written.
      files: the files that must not change while the source is read.
      last_rows: whether the last row of each episode is a step; None if neither the source nor its layout defines it.
    """

    schema: Schema
    origins: list[Origin]
    num_episodes: int
    label: str
    skipped: list[Skipped]
    files: list[str]
    last_rows: LastRows | None

    def size(self) -> Size:
        """The size of the source. May read a sample of it."""

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        """Yields all steps in order, in constant memory.

        Args:
          only: paths of the needed step fields; a source may omit the other fields and the metadata. None means all.

        Raises:
          KabukiError: the source is damaged, or its content differs from what it states.
        """

    def piece(self, first: int, stop: int) -> Source:
        """A source with the episodes `first` to `stop`. It can be used until this source is closed."""

    def name_of(self, episode: int) -> str:
        """The name of an episode for messages: its file and its position in the file."""

    def pieces(self, num_bytes: int) -> Sequence[Source]:
        """Divides the source into sources of about `num_bytes` each, in order. May return the whole source."""

    def close(self) -> None:
        """Closes the files."""


class Sink(Protocol):
    """A dataset to write. It is a context manager: without `commit`, the partial output is discarded."""

    def write(self, block: Block) -> None:
        """Appends the steps of a block.

        Raises:
          KabukiError: the steps cannot be stored.
        """

    def commit(self, last_rows: LastRows, violations: Sequence[Violation] = ()) -> None:
        """Completes the dataset and moves it to its destination.

        Args:
          last_rows: whether the last row of each episode is a step.
          violations: the rules that the steps break.

        Raises:
          KabukiError: the dataset cannot be written, or the destination was created in the meantime.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Fingerprints:
    """The sizes and modification times of the files of sources, to detect changes while they are read."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._files = {path: stamp(path) for source in sources for path in source.files}

    def check(self) -> None:
        """Checks that no file has changed.

        Raises:
          KabukiError: a file has changed.
        """
        for path, before in self._files.items():
            if stamp(path) != before:
                raise KabukiError(f"{path}: changed while it was read; run again when no other program writes to it")

    def to_json(self) -> dict[str, Any]:
        """The origins and files of the sources, to recognize the same sources later."""
        return {
            "sources": [[origin.to_json() for origin in source.origins] for source in self._sources],
            "files": {os.path.abspath(path): stamp for path, stamp in self._files.items()},
        }


def stamp(path: str) -> list[int] | None:
    """[size in bytes, modification time in nanoseconds] of a file; None if it does not exist."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]
