"""Checks a dataset of any format against the rules of the Kabuki format."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from kabuki_rlds.commands.validate_file import check_file
from kabuki_rlds.data.block import Block
from kabuki_rlds.data.common_schema import common_schema
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.rules import REQUIRED, Violation, field_violations
from kabuki_rlds.data.source import Fingerprints, Source
from kabuki_rlds.errors import DamagedDataError, SchemaMismatchError
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.formats.demos.registry import find_layout
from kabuki_rlds.formats.locate import locate
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import CompletedSource
from kabuki_rlds.transforms.transfer import progress_bar, transfer


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of checking a dataset.

    Attributes:
      violations: broken rules, in order; empty if the dataset is valid.
      notes: deviations from rules 3 to 5 that a Kabuki file lists in its attribute `notes`.
      derived: maps each field that is missing from a source to how `convert` derives it; empty for a Kabuki file.
      last_rows: whether the last row of each episode of a source is a step; None for a Kabuki file.
    """

    violations: list[Violation]
    notes: list[Violation]
    derived: dict[str, str] = dataclasses.field(default_factory=dict)
    last_rows: LastRows | None = None


def validate(
    source: StrPath,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    last_row: LastRow | None = None,
    progress: bool = False,
) -> list[Violation]:
    """Checks a dataset against the rules of docs/format.md, in constant memory. Reads every row of every field.

    A Kabuki file is checked against every rule. A deviation from rules 3 to 5 that it lists in its attribute `notes`,
    with the right number of rows, is not a violation.

    Any other source, or a Kabuki file with one of the options, is checked as `convert` would convert it. The check
    reports required fields that cannot be derived, values that break the rules, damaged data, and wrong numbers of
    episodes.

    Args:
      source: the source, as in `convert`.
      split: as in `convert`.
      data_dir: as in `convert`.
      recipe: as in `convert`.
      assume: as in `convert`.
      fill: as in `convert`.
      last_row: as in `convert`.
      progress: show a progress bar on stderr.

    Returns:
      The broken rules in order; empty if the dataset is valid.

    Raises:
      KabukiError: the source or split does not exist, or cannot be opened.

    Example:
      for violation in kabuki_rlds.validate("hopper.hdf5"):
          print(violation.rule, violation.field, violation.rows)
    """
    return examine(
        source,
        split=split,
        data_dir=data_dir,
        recipe=recipe,
        assume=assume,
        fill=fill,
        last_row=last_row,
        progress=progress,
    ).violations


@signals.held_back()
def examine(
    source: StrPath,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    last_row: LastRow | None = None,
    progress: bool = False,
) -> Validation:
    """Checks a dataset like `validate`. Also returns notes, derived fields, and whether last rows are steps."""
    file = None if any((split, data_dir, recipe, assume, fill, last_row)) else _kabuki_file(source)
    if file is not None:
        return Validation(*check_file(file, progress=progress))
    reading = ReadingOptions(recipe, assume, fill, last_row)
    with reading.open(source, split=split, data_dir=data_dir) as opened:
        return _examine_steps(reading, opened, os.fspath(source), progress)


def _kabuki_file(source: StrPath) -> pathlib.Path | None:
    """Returns the path of a source that is a single Kabuki file. Returns None for any other source."""
    paths = locate(source).paths
    is_kabuki = len(paths) == 1 and paths[0].is_file() and find_layout(paths[0]) is None
    return paths[0] if is_kabuki else None


def _examine_steps(reading: ReadingOptions, opened: Sequence[Source], label: str, progress: bool) -> Validation:
    """Checks the steps that a conversion would write."""
    fingerprints = Fingerprints(opened)
    lacking: dict[str, str] = {}
    completed = [_completed(reading, source, lacking) for source in opened]
    schema = common_schema([source.schema for source in completed], [source.label for source in completed])
    derived = {
        path: field.derived
        for source, made in zip(opened, completed, strict=True)
        for path, field in made.schema.steps.items()
        if field.derived and path not in source.schema.steps
    }
    last_rows = None
    try:
        total = sum(source.size().steps for source in completed)
        with _NoSink() as sink, progress_bar(total, label, progress) as bar:
            moved = transfer(completed, sink, schema, fingerprints, bar, label=label, check_rules=True)
        violations, last_rows = moved.violations, moved.last_rows
    except DamagedDataError as e:
        violations = [*field_violations(schema.steps, schema.steps), Violation(1, e.field or e.file, e.problem)]
    explained = [
        dataclasses.replace(each, message=lacking[each.field]) if each.rule == 2 and each.field in lacking else each
        for each in violations
    ]
    return Validation(sorted(explained, key=lambda each: each.rule), [], derived, last_rows)


def _completed(reading: ReadingOptions, source: Source, lacking: dict[str, str]) -> CompletedSource:
    """Returns the source with the required fields that can be derived.

    Adds the other required fields to `lacking`, each with the reason.
    """
    try:
        return reading.complete(source)
    except SchemaMismatchError as e:
        if not set(e.fields) & set(REQUIRED):
            raise
        lacking |= dict.fromkeys(e.fields, e.problem)
    return reading.derive(source)


class _NoSink:
    """A sink that discards all blocks. `transfer` checks the blocks before it writes them."""

    def write(self, block: Block) -> None:
        pass

    def commit(self, last_rows: LastRows, violations: Sequence[Violation] = ()) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
