"""Resumes interrupted conversions.

A partly written HDF5 file cannot be read after its writer was killed. Therefore a conversion also writes finished
episodes to part files: `<destination>.parts/00000.hdf5`, and so on. Each part is a complete Kabuki file of consecutive
episodes and is written atomically. A resumed conversion reads the existing parts instead of the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Block
from kabuki_rlds.data.common_schema import differences
from kabuki_rlds.data.source import Origin
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError
from kabuki_rlds.files import disk
from kabuki_rlds.files.side_files import read_side_file
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.required_fields import CompletedSource
from kabuki_rlds.version import VERSION

#: Approximate size of a part, in bytes of the source.
_PART_BYTES = 128 << 20

_PLAN = "plan.json"
#: The plan lists all files of the sources.
_MAX_JSON_BYTES = 256 << 20
#: Names of part files, and of all files that a folder of parts may contain.
_PART = re.compile(r"\d{5,}\.hdf5")
_OURS = re.compile(r"plan\.json(\.new)?|\d{5,}\.(json|hdf5(\.partial)?)")


class ConversionParts:
    """The parts of one conversion.

    Args:
      dest: the destination of the conversion.
      plan: the sources and options that the result depends on.

    Raises:
      KabukiError: the folder contains parts of a different conversion, or cannot be written.
    """

    def __init__(self, dest: pathlib.Path, plan: Mapping[str, Any]):
        self._folder = _folder(dest)
        self._next = 0
        now = json.loads(json.dumps({"made_by": VERSION, "part_bytes": _PART_BYTES, **plan}))
        try:
            self._folder.mkdir(exist_ok=True)
            if (self._folder / _PLAN).exists():
                self._check(json.loads(read_side_file(self._folder / _PLAN, _MAX_JSON_BYTES)), now)
            elif any(_PART.fullmatch(path.name) for path in self._folder.iterdir()):
                raise KabukiError(f"{self._folder}: contains part files but no {_PLAN}; move or remove the folder")
            else:
                _write(self._folder / _PLAN, now)
        except KabukiError:
            # Some derive from a built-in error too.
            raise
        except (OSError, ValueError, RecursionError) as e:
            raise KabukiError(f"{self._folder}: cannot be used ({e}); {_restart()}") from e

    def _check(self, before: Any, plan: dict[str, Any]) -> None:
        differ = [name for name in plan if not isinstance(before, dict) or before.get(name) != plan[name]]
        if differ:
            raise InvalidArgumentError(
                f"{self._folder}: contains parts of a conversion with different {', '.join(differ)}; "
                f"repeat the earlier call, or leave out {argument('resume', True)} to delete these parts"
            )

    def blocks(self, whole: CompletedSource) -> Iterator[Block]:
        """Yields the blocks of a source: from existing parts, and for missing parts from the source itself.

        Call this once per source, in the order of the sources.

        Args:
          whole: the completed source. Its `changed` is increased by the counts that the parts store.
        """
        for part in whole.pieces(_PART_BYTES):
            path = self._folder / f"{self._next:05d}.hdf5"
            counts = path.with_suffix(".json")
            self._next += 1
            if os.path.lexists(path):
                changed = _counts(counts)
                yield from _blocks_of(path, part)
            else:
                with KabukiSink(path, part.schema, _origins(path, part)) as writer:
                    for block in part.blocks():
                        writer.write(block)
                        yield block
                    with disk.writing(counts):
                        _write(counts, part.changed)
                    writer.commit()
                changed = part.changed
            for name, count in changed.items():
                whole.changed[name] = whole.changed.get(name, 0) + count


def discard(dest: pathlib.Path) -> None:
    """Removes the part files of an earlier conversion to `dest`, if there are any."""
    folder = _folder(dest)
    if not (folder / _PLAN).is_file():
        return
    try:
        ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
        # Delete parts before their counts, and the plan last: a folder without a plan is not recognised.
        for path in sorted(ours, key=lambda path: (path.name == _PLAN, path.suffix != ".hdf5")):
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as e:
        raise KabukiError(f"{e.filename}: cannot be removed ({e.strerror}); remove {folder} by hand") from e


def _folder(dest: pathlib.Path) -> pathlib.Path:
    return dest.with_name(f"{dest.name}.parts")


def _counts(path: pathlib.Path) -> dict[str, int]:
    """Returns the number of rows that `conform` changed in a part, by field."""
    try:
        counts = json.loads(read_side_file(path, _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedDataError(f"cannot be read ({e}); {_restart()}", file=path) from e
    if not isinstance(counts, dict) or any(type(count) is not int for count in counts.values()):
        raise DamagedDataError(f"does not contain the counts of changed rows; {_restart()}", file=path)
    return counts


def _blocks_of(path: pathlib.Path, part: CompletedSource) -> Iterator[Block]:
    """Yields the blocks of an existing part."""
    with contextlib.ExitStack() as stack:
        try:
            stored = stack.enter_context(KabukiSource(path))
            stored.check_complete()
        except KabukiError as e:
            raise KabukiError(f"{e}; {_restart()}") from e
        misfit = "; ".join(each.why for each in differences(part.schema, stored.schema, "this conversion", "the part"))
        stored_origins = [origin.path for origin in stored.origins]
        expected = [origin.path for origin in _origins(path, part)]
        if not misfit and (stored.num_episodes, stored_origins) != (part.num_episodes, expected):
            misfit = "different episodes"
        if misfit:
            raise KabukiError(f"{path}: is not the expected part of this conversion ({misfit}); {_restart()}")
        for block in stored.blocks():
            yield dataclasses.replace(
                block,
                steps={name: block.steps[name] for name in part.schema.steps},
                metadata={name: block.metadata[name] for name in part.schema.metadata},
            )


def _origins(path: pathlib.Path, part: CompletedSource) -> list[Origin]:
    """Returns the origins of the episodes of a part. The last one is the part itself, to detect a renamed file."""
    return [*part.origins, Origin(path.name)]


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes JSON to a file and flushes it to disk. The plan is written atomically."""
    new = path.with_name(f"{path.name}.new") if path.name == _PLAN else path
    with open(new, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _restart() -> str:
    return f"leave out {argument('resume', True)} to restart the conversion"
