"""Summarises a dataset: fields, episode lengths, returns and episode ends."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.arguments import renamed
from kabuki_rlds.data.block import Block
from kabuki_rlds.data.common_schema import common_schema
from kabuki_rlds.data.last_row import Evidence, LastRow, LastRows, warn_of_conflict
from kabuki_rlds.data.nan_actions import NanActionCounter, NanRows
from kabuki_rlds.data.rules import IS_TERMINAL, REWARD, is_number, one_per_row
from kabuki_rlds.data.schema import Field, Info
from kabuki_rlds.data.source import Skipped, Source
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import DamagedDataError, printable
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.formats.hdf5 import layout, unstated_last_rows
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.reading_options import ReadingOptions

#: Maximum number of ranges of damaged episodes that the text lists.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class FieldSummary:
    """The summary of one field.

    Attributes:
      path: path of the field. Paths of episode fields begin with `episodes/metadata/`.
      holds: dtype and shape of a row: `float32 (11,)`.
      num_bytes: size in the Kabuki file in bytes; None for other formats. Most bytes of text and of rows of variable
        length are in HDF5's heap, which is not included.
      memory_bytes: size as arrays in bytes; None if the row size varies.
      derived: how the field was derived; "" if the source has the field.
    """

    path: str
    holds: str
    num_bytes: int | None
    memory_bytes: int | None
    derived: str

    disk_bytes = renamed("disk_bytes", "num_bytes")


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Minimum, mean and maximum of a value over all episodes."""

    min: float
    mean: float
    max: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `inspect`.

    Attributes:
      path: the file or source.
      format: "kabuki", "rlds", "envlogger", or the name of the layout of demonstrations.
      format_version: version of the Kabuki format; "" if the file does not state it.
      info: name, version, description and other metadata of the dataset.
      num_steps, num_episodes: number of steps and of episodes.
      lengths: number of steps per episode; None if there are no episodes.
      returns: sum of rewards per episode, without the reward of a padding row; None if the reward is not one number per
        step.
      last_steps: number of episodes whose last row is a step; None if the file does not state it.
      terminal, truncated: number of terminated and of truncated episodes; None if the flags are missing.
      num_bytes: size of the files in bytes.
      memory_bytes: size of the columns as arrays in bytes, without columns whose row size varies.
      columns: the fields.
      sources: the origins of the episodes.
      skipped: damaged episodes that were left out: file, number of the first episode, count and reason.
      created_by: the program that wrote the file.
      notes: deviations from rules 3 to 5 that a conversion kept: rule, field, count and message.
      nan_actions: the rows whose action contains NaN: field, count and the first few rows; None if actions cannot be
        read.
    """

    path: str
    format: str
    format_version: str
    info: Info
    num_steps: int
    num_episodes: int
    lengths: ValueRange | None
    returns: ValueRange | None
    last_steps: int | None
    terminal: int | None
    truncated: int | None
    num_bytes: int
    memory_bytes: int
    columns: list[FieldSummary]
    sources: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    created_by: str
    notes: list[dict[str, Any]]
    nan_actions: list[dict[str, Any]] | None

    steps = renamed("steps", "num_steps")
    episodes = renamed("episodes", "num_episodes")
    disk_bytes = renamed("disk_bytes", "num_bytes")

    def to_json(self) -> str:
        """Returns the summary as a JSON object. Keys are the attribute names. NaN and infinite values become null."""
        found = dataclasses.asdict(self)
        # JSON cannot represent NaN or infinity.
        for name in ("lengths", "returns"):
            if found[name] is not None:
                found[name] = {k: v if math.isfinite(v) else None for k, v in found[name].items()}
        return json.dumps(found, indent=2, allow_nan=False)


@signals.held_back()
def inspect(
    source: StrPath,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    last_row: LastRow | None = None,
) -> Summary:
    """Summarises a dataset of any format, in constant memory. Decodes only actions, rewards and flags.

    Args:
      source: the source, as in `convert`.
      split: as in `convert`. Sizes on disk are always those of whole files.
      data_dir: as in `convert`.
      recipe: as in `convert`.
      assume: as in `convert`.
      last_row: as in `convert`.

    Returns:
      The summary.

    Raises:
      KabukiError: the source or split does not exist or cannot be read, or the fields of its parts are incompatible.

    Example:
      kabuki_rlds.inspect("hopper.hdf5").returns.mean
    """
    reading = ReadingOptions(recipe, assume, None, last_row)
    with reading.open(source, split=split, data_dir=data_dir, images="encoded") as opened:
        shaped = [reading.apply_recipe(each) for each in opened]
        schema = common_schema([each.schema for each in shaped], [each.label for each in shaped])
        found = [_read(reading, *both) for both in zip(opened, shaped, strict=True)]
        lengths = np.concatenate([each.lengths for each in found])
        returns = _joined([each.returns for each in found])
        terminated = _joined([each.terminated for each in found])
        last_rows = _joined([None if each.last_rows is None else each.last_rows.is_step for each in found])
        kabuki = [each for each in opened if isinstance(each, KabukiSource)]
        columns = [
            FieldSummary(
                prefix + path,
                field.describe(),
                _stored_bytes(opened, prefix, path),
                None if field.row_nbytes is None else field.row_nbytes * rows,
                field.derived,
            )
            for prefix, fields, rows in (
                ("", schema.steps, int(lengths.sum())),
                ("episodes/metadata/", schema.metadata, len(lengths)),
            )
            for path, field in fields.items()
        ]
        return Summary(
            path=os.fspath(source),
            format=", ".join(dict.fromkeys(_format_of(each) for each in opened)),
            format_version=layout.text_attribute(kabuki[0].file, "format_version") if kabuki else "",
            info=schema.info,
            num_steps=int(lengths.sum()),
            num_episodes=len(lengths),
            lengths=_range(lengths),
            returns=None if returns is None else _range(returns),
            last_steps=None if last_rows is None else int(last_rows.sum()),
            terminal=None if terminated is None else int(terminated.sum()),
            truncated=None if terminated is None else int(np.count_nonzero((lengths > 0) & ~terminated)),
            num_bytes=sum(os.path.getsize(file) for file in dict.fromkeys(f for each in opened for f in each.files)),
            memory_bytes=sum(column.memory_bytes or 0 for column in columns),
            columns=columns,
            sources=[origin.to_json() for each in opened for origin in each.origins],
            skipped=[loss.to_json() for each in opened for loss in each.skipped],
            created_by=layout.text_attribute(kabuki[0].file, "created_by") if kabuki else "",
            notes=[note.to_json() for each in kabuki for note in each.notes],
            nan_actions=_nan_actions(found),
        )


def _format_of(source: Source) -> str:
    return "kabuki" if isinstance(source, KabukiSource) else source.origins[0].format


def _stored_bytes(opened: Sequence[Source], prefix: str, path: str) -> int | None:
    """Returns the size of a field in Kabuki files in bytes; None for other formats, which mix fields."""
    total = 0
    for source in opened:
        if not isinstance(source, KabukiSource):
            return None
        dataset = (source.metadata_datasets if prefix else source.step_datasets).get(path)
        total += 0 if dataset is None else dataset.id.get_storage_size()
    return total


@dataclasses.dataclass
class _Read:
    """Statistics of the episodes of one source. Arrays have shape (episodes,).

    Attributes:
      lengths: number of rows, int64.
      returns: sum of rewards without the reward of a padding row, float64; None if the reward is not one number per
        step.
      terminated: whether the episode ends in a terminal state, bool; None if the flag is missing.
      last_rows: whether the last row is a step; None if a Kabuki file does not state it.
      nan: the rows whose action contains NaN; None if actions cannot be read.
    """

    lengths: np.ndarray
    returns: np.ndarray | None
    terminated: np.ndarray | None
    last_rows: LastRows | None
    nan: list[NanRows] | None


def _read(reading: ReadingOptions, source: Source, shaped: Source) -> _Read:
    try:
        return _read_steps(reading, source, shaped, NanActionCounter(shaped.schema.steps))
    except DamagedDataError:
        # `validate` reports the damaged actions. The other fields may still be readable.
        return _read_steps(reading, source, shaped, None)


def _read_steps(reading: ReadingOptions, source: Source, shaped: Source, nan: NanActionCounter | None) -> _Read:
    """Computes the statistics of a source. `shaped` is the same source after the recipe."""
    known = source.last_rows
    evidence = None
    if isinstance(source, KabukiSource):
        if known is None:
            unstated_last_rows.warn_if_unstated(source)
    elif known is None and reading.recipe is not None:
        known = reading.decide(source)
    elif known is None:
        evidence = Evidence(shaped.schema.steps)
    sums = _EpisodeSums(shaped.num_episodes, shaped.schema.steps)
    named = [*sums.fields, *(evidence.fields if evidence else ()), *(nan.fields if nan else ())]
    for block in shaped.blocks(only=list(dict.fromkeys(named))):
        signals.check()
        sums.observe(block)
        for each in (evidence, nan):
            if each is not None:
                each.observe(block)
    last_rows = known if evidence is None else evidence.decide(shaped.num_episodes)
    if last_rows is not None:
        warn_of_conflict(last_rows, source.label)
    is_step = np.zeros(shaped.num_episodes, bool) if last_rows is None else last_rows.is_step
    returns = None if sums.rewards is None else sums.rewards + np.where(is_step, sums.last_rewards, 0)
    return _Read(sums.lengths, returns, sums.terminated, last_rows, None if nan is None else nan.finish(is_step))


class _EpisodeSums:
    """Sums over the steps of each episode. The number of episodes is known in advance."""

    def __init__(self, num_episodes: int, fields: Mapping[str, Field]):
        self.fields = [name for name in (REWARD, IS_TERMINAL) if name in fields]
        self.lengths = np.zeros(num_episodes, np.int64)
        #: Sum of rewards without the last row of each episode, float64 (episodes,).
        self.rewards = np.zeros(num_episodes) if REWARD in fields else None
        self.last_rewards = np.zeros(num_episodes)
        self.terminated = np.zeros(num_episodes, bool) if IS_TERMINAL in fields else None
        self._begun = 0

    def observe(self, block: Block) -> None:
        """Adds the next block."""
        episode = self._begun + block.episode_of
        self._begun += block.num_episodes
        if self._begun > len(self.lengths):
            raise DamagedDataError(f"contains more episodes than the stated {len(self.lengths)}")
        if not block.num_steps:
            return
        self.lengths += np.bincount(episode, minlength=len(self.lengths))
        if self.terminated is not None:
            flag = one_per_row(block.steps[IS_TERMINAL])
            if flag is None:
                self.terminated = None
            else:
                self.terminated[episode[flag.astype(bool)]] = True
        if self.rewards is None:
            return
        reward = one_per_row(block.steps[REWARD])
        if reward is None or not is_number(reward.dtype):
            self.rewards = None
            return
        reward = reward.astype(np.float64)
        # If the episode continues from the previous block, the last row there was not its last row.
        self.rewards[episode[0]] += self.last_rewards[episode[0]]
        is_last = np.append(episode[1:] != episode[:-1], True)
        self.rewards += np.bincount(episode, np.where(is_last, 0, reward), len(self.rewards))
        self.last_rewards[episode[is_last]] = reward[is_last]


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _nan_actions(found: Sequence[_Read]) -> list[dict[str, Any]] | None:
    """Returns the rows whose action contains NaN, by field. Rows are numbered over all sources."""
    joined: dict[str, NanRows] = {}
    start = 0
    for each in found:
        if each.nan is None:
            return None
        for rows in each.nan:
            before = joined.get(rows.field, NanRows(rows.field, 0, ()))
            moved = tuple(start + row for row in rows.rows)
            named = (before.rows + moved)[: max(len(before.rows), len(moved))]
            joined[rows.field] = NanRows(rows.field, before.count + rows.count, named)
        start += int(each.lengths.sum())
    return [dataclasses.asdict(rows) for rows in joined.values()]


def _range(values: np.ndarray) -> ValueRange | None:
    return ValueRange(float(values.min()), float(values.mean()), float(values.max())) if len(values) else None


def to_text(summary: Summary) -> str:
    """Returns the summary as text for the terminal."""
    info = summary.info
    title = " ".join(part for part in (info.name, info.version) if part)
    kind = summary.format
    if kind == "kabuki":
        kind = f"Kabuki {summary.format_version}" if summary.format_version else "HDF5 file without format_version"
    lines = [f"{summary.path}: {kind}{f', {title}' if title else ''}"]
    if info.description.strip():
        lines.append(f"  {info.description.strip().splitlines()[0][:100]}")
    lines.append(f"  {summary.num_steps:,} steps in {summary.num_episodes:,} episodes")
    for name, values in (("lengths", summary.lengths), ("returns", summary.returns)):
        if values is not None:
            lines.append(
                f"  {name:<9} min {_number(values.min)}, mean {_number(values.mean)}, max {_number(values.max)}"
            )
    if summary.terminal is not None:
        lines.append(f"  {'endings':<9} {summary.terminal:,} terminated, {summary.truncated:,} truncated")
    if summary.last_steps is not None:
        observations = summary.num_episodes - summary.last_steps
        lines.append(f"  {'last rows':<9} {summary.last_steps:,} steps, {observations:,} observations")
    varies = any(column.memory_bytes is None for column in summary.columns)
    without = " without fields of variable size" if varies else ""
    lines.append(
        f"  {'size':<9} {format_bytes(summary.num_bytes)} on disk, "
        f"{format_bytes(summary.memory_bytes)} in memory{without}"
    )
    for origin in summary.sources:
        split = f" ({origin['split']})" if origin.get("split") else ""
        lines.append(f"  {'source':<9} {origin['path']}{split}")
    for loss in summary.skipped[:_NAMED]:
        lines.append(f"  {'left out':<9} {Skipped(**loss)}")
    if len(summary.skipped) > _NAMED:
        lines.append(f"  {'left out':<9} and {len(summary.skipped) - _NAMED:,} more ranges, listed in the JSON output")
    for each in summary.nan_actions or ():
        lines.append(f"  {'NaN':<9} {NanRows(**each)}")
    for note in summary.notes:
        lines.append(f"  {'note':<9} rule {note['rule']}: {note['field']}: {note['message']} ({note['count']:,})")
    if summary.created_by:
        lines.append(f"  {'made by':<9} {summary.created_by}")
    rows = [("field", "row", "on disk", "in memory")]
    for column in summary.columns:
        memory = "varies" if column.memory_bytes is None else format_bytes(column.memory_bytes)
        disk = "" if column.num_bytes is None else format_bytes(column.num_bytes)
        derived = f" ({column.derived})" if column.derived else ""
        rows.append((column.path, column.holds + derived, disk, memory))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines.append("")
    for a, b, c, d in rows:
        lines.append(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}")
    return "\n".join(map(printable, lines))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}"
