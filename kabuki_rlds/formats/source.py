"""What a source is: anything that has a schema and yields blocks of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from kabuki_rlds.block import Block
from kabuki_rlds.schema import Schema


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where episodes came from: one entry of a Kabuki file's `sources`.

    Attributes:
      path: the folder or file that was read.
      name: the dataset's name and version, where it has one.
      split: the split that was read.
      format: "rlds" or "kabuki".
      via: the Kabuki files that the episodes passed through on the way, newest first.
    """

    path: str
    name: str = ""
    split: str = ""
    format: str = ""
    via: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


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


class Source(Protocol):
    """A dataset to read.

    Attributes:
      schema: its fields.
      origins: where its episodes come from.
      origin_of: which of `origins` each episode came from: int64, (episodes,).
      num_episodes: how many episodes it says it has.
      label: what to call it in a message.
    """

    schema: Schema
    origins: list[Origin]
    origin_of: np.ndarray
    num_episodes: int
    label: str

    def size(self) -> Size:
        """Looks at a sample of the source."""

    def blocks(self) -> Iterator[Block]:
        """Yields all steps in order, in constant memory.

        Raises:
          KabukiError: what was read is not what the source says it holds.
        """

    def close(self) -> None:
        """Closes what it holds open."""
