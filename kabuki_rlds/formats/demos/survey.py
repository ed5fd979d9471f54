"""Surveys the episodes of a source: finds their lengths, fields and damage before any steps are read."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kabuki_rlds.data.schema import Field, Info
from kabuki_rlds.data.skipped_episodes import skipped_for
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import KabukiError, MissingDependencyError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.demos.assumptions import Assumptions, inapplicable
from kabuki_rlds.formats.demos.block_builder import metadata_field
from kabuki_rlds.formats.demos.demo_episode import CountMismatchError, DemoEpisode, UnreadableEpisode
from kabuki_rlds.formats.demos.demo_files import DemoFiles, reading_as
from kabuki_rlds.formats.demos.layout import EpisodeLayout

_log = logging.getLogger("kabuki_rlds")


@dataclasses.dataclass(frozen=True, slots=True)
class SurveyedEpisode:
    """What is known of an episode before its steps are read.

    Attributes:
      path: its file.
      number: its number in the file, from 0.
      label: its location in the file, for messages.
      masks: the names of the masks that list it.
      length: number of rows.
      last_is_step: whether its last row is a step, not an observation alone.
      steps: path to step field.
      metadata: path to episode field.
      blank: the step fields whose rows are all empty.
    """

    path: str
    number: int
    label: str
    masks: frozenset[str]
    length: int
    last_is_step: bool
    steps: Mapping[str, Field]
    metadata: Mapping[str, Field]
    blank: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file and the location in it, for messages."""
        return f"{self.path}: {self.label}"


class Survey:
    """Surveys all episodes of some files.

    Args:
      layout: the layout of the files.
      files: opens them.
      paths: their paths.
      assume: a value for each assumption.
      asked: the assumptions that must apply to at least one file.
      skip_bad: leave out damaged episodes, and damaged files if there are others. Episodes without steps are left out
        in any case.

    Attributes:
      paths: the files that are not left out.
      episodes: the episodes that are not left out, in order.
      skipped: what is left out.
      episode_fields: those fields unknown to the layout that are episode fields.
      info: the dataset's description according to the first file.

    Raises:
      KabukiError: a file or an episode cannot be read, or an assumption cannot apply.
    """

    def __init__(
        self,
        layout: EpisodeLayout,
        files: DemoFiles,
        paths: Sequence[str],
        assume: Assumptions,
        *,
        asked: Collection[str],
        skip_bad: bool,
    ):
        self._layout = layout
        self._files = files
        self._assume = assume
        self._skip_bad = skip_bad
        self.paths = list(paths)
        self.info = Info()
        self._damaged_files: list[Skipped] = []
        self._unknown_fields: set[str] = set()
        self._fields_per_step: set[str] | None = None
        self._shared_fields: dict[Any, Mapping[str, Field]] = {}
        #: Assumptions that must apply but do not apply to any file so far, and why.
        self._inapplicable = {name: "" for name in asked if assume[name] not in layout.assumptions[name][:1]}
        surveyed = self._survey_files()
        for name, reason in self._inapplicable.items():
            raise inapplicable(self.paths[0], name, assume[name], reason)
        found = [episode for path in self.paths for episode in surveyed[path]]
        self.episodes = [episode for episode in found if isinstance(episode, SurveyedEpisode)]
        self.skipped = [*self._damaged_files, *(episode for episode in found if isinstance(episode, Skipped))]

    @property
    def episode_fields(self) -> set[str]:
        """The unknown fields that do not have a row per action in every episode surveyed so far."""
        return self._unknown_fields - (self._fields_per_step or set())

    def _survey_files(self) -> dict[str, list[SurveyedEpisode | Skipped]]:
        surveyed: dict[str, list[SurveyedEpisode | Skipped]] = {}
        used: dict[str, set[str]] = {}
        for path in list(self.paths):
            with self._skipping_damaged(path):
                self._add_unknown_fields(path)
                used[path] = self.episode_fields
                surveyed[path] = self._survey_file(path)
        for path in list(self.paths):
            # A later file showed that a field of this one is an episode field.
            if used[path] != self.episode_fields:
                with self._skipping_damaged(path):
                    surveyed[path] = self._survey_file(path)
        return surveyed

    @contextlib.contextmanager
    def _skipping_damaged(self, path: str) -> Iterator[None]:
        """Leaves out a file that cannot be read, if damaged files are left out and others remain."""
        try:
            with reading_as(self._layout, path):
                yield
        except KabukiError as e:
            if not self._skip_bad or len(self.paths) == 1 or isinstance(e, MissingDependencyError):
                raise
            self.paths.remove(path)
            self._damaged_files.append(skipped_for(path, 0, e))

    def _add_unknown_fields(self, path: str) -> None:
        signals.check()
        for fields, per_step in self._layout.unknown_fields(self._files.open(path)):
            self._unknown_fields |= fields
            self._fields_per_step = per_step if self._fields_per_step is None else self._fields_per_step & per_step

    def _survey_file(self, path: str) -> list[SurveyedEpisode | Skipped]:
        """Surveys the episodes of a file.

        Raises:
          KabukiError: the file cannot be read, or an episode that is not left out.
        """
        file = self._files.open(path)
        if path == self.paths[0]:
            self.info = self._layout.info(file)
        for name in list(self._inapplicable):
            self._inapplicable[name] = self._layout.why_inapplicable(file, name, self._assume[name])
            if not self._inapplicable[name]:
                del self._inapplicable[name]
        found: list[SurveyedEpisode | Skipped] = []
        try:
            for number, episode in enumerate(self._layout.episodes(file, self._assume, self.episode_fields)):
                signals.check()
                if isinstance(episode, DemoEpisode):
                    found.append(self._survey_episode(path, number, episode))
                else:
                    found.append(self._skip(path, number, episode))
        except CountMismatchError as e:
            if not self._skip_bad:
                raise
            if e.num_missing:
                found.append(Skipped(path, len(found), e.num_missing, str(e).removeprefix(f"{path}: ")))
            else:
                _log.warning("%s", e)
        if not found:
            raise KabukiError(f"{path}: holds no episode")
        return found

    def _skip(self, path: str, number: int, episode: UnreadableEpisode) -> Skipped:
        if not (self._skip_bad or episode.is_empty):
            raise episode.error
        return skipped_for(path, number, episode.error)

    def _survey_episode(self, path: str, number: int, episode: DemoEpisode) -> SurveyedEpisode:
        # Layouts validate this and report it. A mistake here would shift all rows that follow.
        assert episode.length and all(len(rows) == episode.length for rows in episode.steps.values()), path
        return SurveyedEpisode(
            path,
            number,
            episode.label,
            episode.masks,
            episode.length,
            episode.last_is_step,
            self._share({name: rows.field for name, rows in episode.steps.items()}),
            self._share({name: metadata_field(value) for name, value in episode.metadata.items()}),
            tuple(name for name, rows in episode.steps.items() if rows.is_blank),
        )

    def _share(self, fields: dict[str, Field]) -> Mapping[str, Field]:
        """Returns an equal mapping from an earlier episode, so that equal fields are kept once."""
        return self._shared_fields.setdefault(
            tuple((name, field, field.file_format) for name, field in fields.items()), fields
        )
