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
    """Where episodes came from: one entry of a Kabuki file's `sources`.

    Attributes:
      path: the folder or file that was read.
      name: the dataset's name and version, where it has one.
      split: the split that was read.
      format: "rlds", "envlogger", "kabuki", or the name of a layout of others.
      via: the Kabuki files that the episodes passed through on the way, newest first.
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
        """An entry of `sources`.

        Raises:
          ValueError: it is none.
        """
        texts = dict(entry) if isinstance(entry, dict) else {}
        via = texts.pop("via", [])
        known = {field.name for field in dataclasses.fields(cls)}
        if not ("path" in texts and texts.keys() <= known and isinstance(via, list)):
            raise ValueError(f"not a dict of {', '.join(sorted(known))}")
        if not all(isinstance(text, str) for text in (*texts.values(), *via)):
            raise ValueError("what is in it is no text")
        return cls(**texts, via=tuple(via))


@dataclasses.dataclass(frozen=True)
class Size:
    """How much a source holds.

    Attributes:
      steps: number of steps; exact where `is_exact`, else estimated from a sample.
      num_bytes: bytes that the source takes on disk.
      sample: some of its steps, to see how large they are, None where it has none.
      image_fields: the step fields that are decoded from image files as they are read.
    """

    steps: int
    is_exact: bool
    num_bytes: int
    sample: Block | None
    image_fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Damaged episodes that were left out.

    Attributes:
      path: the file in which they are, or should be.
      record: the number of the first of them there, from 0.
      count: how many they are.
      why: what is wrong with them.
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
        """An entry of `skipped`.

        Raises:
          ValueError: it is none.
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
      schema: its fields.
      origins: where its episodes come from.
      num_episodes: how many episodes it says it has.
      label: what to call it in a message.
      skipped: the episodes that it leaves out, or that were left out before; not counted in `num_episodes`.
      files: the files that must not change while it is read.
      last_rows: whether the last row of each episode is a step, where the source states it or its layout fixes it;
        None where neither does.
    """

    schema: Schema
    origins: list[Origin]
    num_episodes: int
    label: str
    skipped: list[Skipped]
    files: list[str]
    last_rows: LastRows | None

    def size(self) -> Size:
        """Looks at a sample of the source."""

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        """Yields all steps in order, in constant memory.

        Args:
          only: the step fields that are needed; a source may leave out the others, and the metadata.

        Raises:
          KabukiError: what was read is not what the source says it holds.
        """

    def piece(self, first: int, stop: int) -> Source:
        """The episodes `first` to `stop` as a source of their own, which lives as long as this one is open."""

    def name_of(self, episode: int) -> str:
        """What to call an episode in a message: its file, and its place there."""

    def pieces(self, num_bytes: int) -> Sequence[Source]:
        """The same episodes in order, as sources of about so many bytes each where it can be cut."""

    def close(self) -> None:
        """Closes what it holds open."""


class Sink(Protocol):
    """A dataset that is being written.

    It is a context manager: without `commit`, nothing of it remains.
    """

    def write(self, block: Block) -> None:
        """Appends the steps of a block.

        Raises:
          KabukiError: they cannot be stored.
        """

    def commit(self, last_rows: LastRows, violations: Sequence[Violation] = ()) -> None:
        """Completes the dataset and gives it its name.

        Args:
          last_rows: whether the last row of each episode is a step.
          violations: the rules that the steps break.

        Raises:
          KabukiError: it cannot be written, or another process has made it in the meantime.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Fingerprints:
    """The sizes of the files of some sources, and when each was last written to, as they are now."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._files = {path: stamp(path) for source in sources for path in source.files}

    def check(self) -> None:
        """Holds them against what the files are by now.

        Raises:
          KabukiError: one has changed.
        """
        for path, before in self._files.items():
            if stamp(path) != before:
                raise KabukiError(f"{path}: changed while it was read; run again when nothing writes to it")

    def to_json(self) -> dict[str, Any]:
        """What the sources are, to tell them again."""
        return {
            "sources": [[origin.to_json() for origin in source.origins] for source in self._sources],
            "files": {os.path.abspath(path): stamp for path, stamp in self._files.items()},
        }


def stamp(path: str) -> list[int] | None:
    """Size, and nanoseconds of the last change; None where the file is gone."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]
