"""What is in a Kabuki file: what a researcher wants to know first."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import numpy as np

from kabuki_rlds.arguments import renamed
from kabuki_rlds.data.block import row_splits
from kabuki_rlds.data.nan_actions import NanRows, find_nan_actions
from kabuki_rlds.data.rules import IS_TERMINAL, REWARD, is_number, one_per_row
from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import KabukiError, printable
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5 import layout, unstated_last_rows
from kabuki_rlds.formats.hdf5.source import KabukiSource

#: How many places of damaged episodes are named.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class FieldSummary:
    """One field.

    Attributes:
      path: where it stands; fields of the episodes are under `episodes/metadata`.
      holds: what a row is, in words: `float32 (11,)`.
      num_bytes: what it takes in the file. Text and rows of variable length have
        most of theirs in HDF5's heap, which is not counted by field.
      memory_bytes: what it takes as arrays, None where rows differ in size.
      derived: how it was made, where the source had no such field.
    """

    path: str
    holds: str
    num_bytes: int
    memory_bytes: int | None
    derived: str

    disk_bytes = renamed("disk_bytes", "num_bytes")


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Smallest, mean and largest of the episodes' values."""

    min: float
    mean: float
    max: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `inspect` found.

    Attributes:
      path: the file.
      format_version: version of the Kabuki format, "" where the file does not say.
      info: name, version, description and so on of the dataset.
      num_steps, num_episodes: how many there are.
      lengths: steps of an episode; None where there are no episodes.
      returns: sum of an episode's rewards, without that of a last row that is padding;
        None where the reward is not one number a step.
      last_steps: in how many episodes the last row is a step; None where the file does not say it.
      terminal, truncated: how many episodes end in a terminal state, and how many
        were cut short; None where the flags are missing.
      num_bytes: size of the file.
      memory_bytes: size of the columns as arrays, of those whose rows have one size.
      columns: the fields.
      sources: where the episodes came from.
      skipped: damaged episodes of the sources that were left out: file, number of the first, how many, and why.
      created_by: the program that wrote the file.
      notes: deviations from rules 3 to 5 that were kept: rule, field, count and message.
      nan_actions: the rows whose action has a NaN: field, count and the first rows; None where they cannot be read.
    """

    path: str
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
        """The summary as a JSON object, with the attributes' names; null where a return is no finite number."""
        found = dataclasses.asdict(self)
        # JSON has no NaN and no infinity.
        for name in ("lengths", "returns"):
            if found[name] is not None:
                found[name] = {k: v if math.isfinite(v) else None for k, v in found[name].items()}
        return json.dumps(found, indent=2, allow_nan=False)


@signals.held_back()
def inspect(path: str | os.PathLike[str], *, split: str | None = None) -> Summary:
    """Looks into a Kabuki file. Only the actions, the rewards and the flags are read.

    Args:
      path: the file.
      split: a part of the file, in TFDS's syntax: `train[17:18]`. Sizes on disk are those of the whole file.

    Raises:
      KabukiError: the file cannot be opened, is no Kabuki file, or has no such part.
    """
    with KabukiSource(path) as whole:
        source = whole if split is None else whole.of_split(split)
        num_steps = int(source.lengths.sum())
        columns = [
            FieldSummary(
                name,
                field.describe(),
                dataset.id.get_storage_size(),
                None if field.row_nbytes is None else field.row_nbytes * rows,
                field.derived,
            )
            for prefix, datasets, fields, rows in (
                ("", source.step_datasets, source.schema.steps, num_steps),
                ("episodes/metadata/", source.metadata_datasets, source.schema.metadata, source.num_episodes),
            )
            for (name, dataset), field in zip(
                ((prefix + path, dataset) for path, dataset in datasets.items()), fields.values(), strict=True
            )
        ]
        unstated_last_rows.warn_if_unstated(source)
        lengths = source.lengths
        returns, terminal = _returns_and_ends(source)
        ended = lengths > 0
        return Summary(
            path=os.fspath(path),
            format_version=layout.text_attribute(source.file, "format_version"),
            info=source.schema.info,
            num_steps=num_steps,
            num_episodes=source.num_episodes,
            lengths=_range(lengths),
            returns=None if returns is None else _range(returns),
            last_steps=None if source.last_rows is None else source.last_rows.num_steps,
            terminal=None if terminal is None else int(terminal.sum()),
            truncated=None if terminal is None else int(np.count_nonzero(ended & ~terminal)),
            num_bytes=os.path.getsize(source.file.filename),
            memory_bytes=sum(column.memory_bytes or 0 for column in columns),
            columns=columns,
            sources=[origin.to_json() for origin in source.origins],
            skipped=[loss.to_json() for loss in source.skipped],
            created_by=layout.text_attribute(source.file, "created_by"),
            notes=[note.to_json() for note in source.notes],
            nan_actions=_nan_actions(source),
        )


def _returns_and_ends(source: KabukiSource) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(sum of rewards, whether it ended in a terminal state) of each episode."""
    names = [name for name in (REWARD, IS_TERMINAL) if name in source.schema.steps]
    returns = np.zeros(source.num_episodes) if REWARD in names else None
    last_is_step = np.zeros(source.num_episodes, bool) if source.last_rows is None else source.last_rows.is_step
    terminal = np.zeros(source.num_episodes, bool) if IS_TERMINAL in names else None
    bounds = row_splits(source.lengths)
    row = 0
    for block in source.blocks(only=names):
        rows = np.arange(row, row + block.num_steps)
        row += block.num_steps
        episode = np.searchsorted(bounds[:-1], rows, side="right") - 1
        values = {name: one_per_row(column) for name, column in block.steps.items()}
        if returns is not None:
            reward = values[REWARD]
            if reward is None or not is_number(reward.dtype):
                returns = None
            else:
                # As in the loaders, the index and not `is_last` says where an episode ends.
                is_padding = (rows == bounds[episode + 1] - 1) & ~last_is_step[episode]
                returns += np.bincount(episode, np.where(is_padding, 0, reward.astype(np.float64)), source.num_episodes)
        if terminal is not None:
            flag = values[IS_TERMINAL]
            if flag is None:
                terminal = None
            else:
                terminal[episode[flag.astype(bool)]] = True
    return returns, terminal


def _nan_actions(source: KabukiSource) -> list[dict[str, Any]] | None:
    try:
        return [dataclasses.asdict(each) for each in find_nan_actions(source)]
    except KabukiError:
        # `validate` says which rows are damaged.
        return None


def _range(values: np.ndarray) -> ValueRange | None:
    return ValueRange(float(values.min()), float(values.mean()), float(values.max())) if len(values) else None


def to_text(summary: Summary) -> str:
    """The summary for people."""
    info = summary.info
    title = " ".join(part for part in (info.name, info.version) if part)
    kind = f"Kabuki {summary.format_version}" if summary.format_version else "no format stated"
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
    varies = " and what varies" if any(column.memory_bytes is None for column in summary.columns) else ""
    lines.append(
        f"  {'size':<9} {format_bytes(summary.num_bytes)} on disk, "
        f"{format_bytes(summary.memory_bytes)}{varies} in memory"
    )
    for origin in summary.sources:
        split = f" ({origin['split']})" if origin.get("split") else ""
        lines.append(f"  {'source':<9} {origin['path']}{split}")
    for loss in summary.skipped[:_NAMED]:
        lines.append(f"  {'left out':<9} {Skipped(**loss)}")
    if len(summary.skipped) > _NAMED:
        lines.append(
            f"  {'left out':<9} and {len(summary.skipped) - _NAMED:,} more places, which the JSON output names"
        )
    for each in summary.nan_actions or ():
        lines.append(f"  {'NaN':<9} {NanRows(**each)}")
    for note in summary.notes:
        lines.append(f"  {'note':<9} rule {note['rule']}: {note['field']}: {note['message']} ({note['count']:,})")
    if summary.created_by:
        lines.append(f"  {'made by':<9} {summary.created_by}")
    rows = [("field", "a row is", "on disk", "in memory")]
    for column in summary.columns:
        memory = "varies" if column.memory_bytes is None else format_bytes(column.memory_bytes)
        derived = f" ({column.derived})" if column.derived else ""
        rows.append((column.path, column.holds + derived, format_bytes(column.num_bytes), memory))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines.append("")
    for a, b, c, d in rows:
        lines.append(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}")
    return "\n".join(map(printable, lines))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}"
