"""What a layout of demonstrations is: how it recognises its files, and how it reads them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.skipped_episodes import Selectable
from kabuki_rlds.formats.demos.assumptions import Assumptions
from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, UnreadableEpisode


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """How files of demonstrations are read.

    Attributes:
      split: the name of a mask, or part of a split in TFDS's syntax (see `data.split_syntax`). None reads all episodes.
      assume: semantics that the files do not define: {"dones": "success"}.
      asked: the assumptions that must apply to at least one file. The others may come from a recipe.
      images: whether images stored as image files are decoded ("arrays") or read as bytes ("encoded").
      skip_bad: leave out damaged episodes, and damaged files if there are others.
    """

    split: str | None
    assume: Assumptions
    asked: Collection[str]
    images: Literal["arrays", "encoded"]
    skip_bad: bool


class Layout(Protocol):
    """One way to store demonstrations.

    Attributes:
      name: the name of the layout.
      assumptions: the semantics that the layout does not define, each with its possible values, default first. No
        values means that any text is allowed.
      joins_files: whether several files are read as one source.
    """

    name: str
    assumptions: Mapping[str, tuple[str, ...]]
    joins_files: bool

    def recognises(self, file: Any) -> bool:
        """Returns whether an open HDF5 file (or, for Minari's Arrow layout, a folder) has this layout."""

    def open_source(self, paths: Sequence[str], options: DemoOptions) -> Selectable:
        """Opens files of this layout.

        Args:
          paths: the files; exactly one unless `joins_files`.
          options: how they are read.

        Raises:
          KabukiError: a file cannot be read, or the options do not fit it.
        """


class EpisodeLayout(Layout, Protocol):
    """A layout that stores each episode by itself, so that `DemosSource` can read it."""

    def open(self, path: str, *, quiet: bool = False) -> contextlib.AbstractContextManager[Any]:
        """Opens a file, or a folder if the layout stores a dataset as a folder.

        Args:
          path: the file.
          quiet: do not repeat warnings, because the file was opened before.

        Raises:
          KabukiError: the file cannot be opened.
        """

    def files(self, path: str) -> list[str]:
        """Returns all files that are read with `path`, such as a JSON file next to it."""

    def unknown_fields(self, file: Any) -> Iterator[tuple[set[str], set[str]]]:
        """Yields, per episode, the fields that the layout does not define, and those of them with a row per action.

        A field that has a row per action in every episode is a step field. Any other is an episode field.
        """

    def episodes(
        self, file: Any, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        """Yields the episodes of an open file in order, including those that cannot be read.

        Args:
          file: the file.
          assume: a value for each assumption.
          episode_fields: the unknown fields that are episode fields.

        Raises:
          KabukiError: the file contradicts itself.
        """

    def why_inapplicable(self, file: Any, name: str, value: str) -> str:
        """Returns why an assumption cannot apply to a file; "" if it can."""

    def info(self, file: Any) -> Info:
        """Returns the dataset's name, description and environment according to a file."""
