"""Conversions that are taken up again where they stopped.

An HDF5 file in the making cannot be read once its writer was killed. So what is done
is also kept in parts beside it, each a whole Kabuki file of some consecutive
episodes: `<destination>.parts/00000.hdf5`, and so on. A part is there or not, as any
file that this package writes. The next conversion reads those that are there, instead
of the source.
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
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.required_fields import CompletedSource
from kabuki_rlds.version import VERSION

#: About so many bytes of a source make a part.
_PART_BYTES = 128 << 20

_PLAN = "plan.json"
#: The files of a folder of parts.
_PART = re.compile(r"\d{5,}\.hdf5")
_OURS = re.compile(r"plan\.json(\.new)?|\d{5,}\.(json|hdf5(\.partial)?)")


class ConversionParts:
    """The parts of one conversion.

    Args:
      dest: the file that is to be made.
      plan: all that the result depends on: sources and options.

    Raises:
      KabukiError: there are parts of another conversion, or they cannot be written.
    """

    def __init__(self, dest: pathlib.Path, plan: Mapping[str, Any]):
        self._folder = _folder(dest)
        self._next = 0
        now = json.loads(json.dumps({"made_by": VERSION, "part_bytes": _PART_BYTES, **plan}))
        try:
            self._folder.mkdir(exist_ok=True)
            if (self._folder / _PLAN).is_file():
                self._check(json.loads((self._folder / _PLAN).read_text()), now)
            elif any(_PART.fullmatch(path.name) for path in self._folder.iterdir()):
                raise KabukiError(
                    f"{self._folder}: holds parts without a {_PLAN} that says of what; move it away, or remove it"
                )
            else:
                _write(self._folder / _PLAN, now)
        except KabukiError:
            # Some derive from a built-in error too.
            raise
        except (OSError, ValueError, RecursionError) as e:
            raise KabukiError(f"{self._folder}: cannot be used ({e}); {_anew()}") from e

    def _check(self, before: Any, plan: dict[str, Any]) -> None:
        differ = [name for name in plan if not isinstance(before, dict) or before.get(name) != plan[name]]
        if differ:
            raise InvalidArgumentError(
                f"{self._folder}: holds parts of another conversion, with other {', '.join(differ)}; "
                f"call it as before, or without {argument('resume', True)}, which deletes these parts"
            )

    def blocks(self, whole: CompletedSource) -> Iterator[Block]:
        """The blocks of a source, from the parts that are there, and then from itself.

        Args:
          whole: the source, completed, which takes the counts of what was changed. The sources of a conversion are
            given in order.
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
    """Removes the parts that a conversion to `dest` left, if any."""
    folder = _folder(dest)
    if not (folder / _PLAN).is_file():
        return
    try:
        ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
        # Parts before what belongs to them, and at last the plan, by which the folder is known.
        for path in sorted(ours, key=lambda path: (path.name == _PLAN, path.suffix != ".hdf5")):
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as e:
        raise KabukiError(f"{e.filename}: cannot be removed ({e.strerror}); remove {folder} by hand") from e


def _folder(dest: pathlib.Path) -> pathlib.Path:
    return dest.with_name(f"{dest.name}.parts")


def _counts(path: pathlib.Path) -> dict[str, int]:
    """Field to number of rows that `conform` changed in a part."""
    try:
        counts = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedDataError(f"cannot be read ({e}); {_anew()}", file=path) from e
    if not isinstance(counts, dict) or any(type(count) is not int for count in counts.values()):
        raise DamagedDataError(f"does not say how many rows were changed; {_anew()}", file=path)
    return counts


def _blocks_of(path: pathlib.Path, part: CompletedSource) -> Iterator[Block]:
    """The blocks of a part that is there already."""
    with contextlib.ExitStack() as stack:
        try:
            stored = stack.enter_context(KabukiSource(path))
            stored.check_complete()
        except KabukiError as e:
            raise KabukiError(f"{e}; {_anew()}") from e
        misfit = "; ".join(each.why for each in differences(part.schema, stored.schema, "this conversion", "the part"))
        stored_origins = [origin.path for origin in stored.origins]
        expected = [origin.path for origin in _origins(path, part)]
        if not misfit and (stored.num_episodes, stored_origins) != (part.num_episodes, expected):
            misfit = "it is another part"
        if misfit:
            raise KabukiError(f"{path}: not what this conversion left there ({misfit}); {_anew()}")
        for block in stored.blocks():
            yield dataclasses.replace(
                block,
                steps={name: block.steps[name] for name in part.schema.steps},
                metadata={name: block.metadata[name] for name in part.schema.metadata},
            )


def _origins(path: pathlib.Path, part: CompletedSource) -> list[Origin]:
    """The origins of the episodes of a part. The last names the part, in case its file is moved."""
    return [*part.origins, Origin(path.name)]


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes JSON to a file that is there whole or not at all."""
    new = path.with_name(f"{path.name}.new") if path.name == _PLAN else path
    with open(new, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _anew() -> str:
    return f"without {argument('resume', True)} the conversion begins anew"
