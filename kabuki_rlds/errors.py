"""The errors that are meant for the person who runs the tool, and their text.

All derive from `KabukiError`; where Python has an error of the same meaning, from that too.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Self


class KabukiError(Exception):
    """Something that the user can act on.

    The message is one line: what is wrong, where, and what to do about it. The
    command line prints it as it is and exits with 1; a library user may catch it.

    A name or a value in it may come from a stranger's file, so it is made one line,
    and characters that a terminal would obey are spelt out.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))

    def within(self, place: str | os.PathLike[str]) -> Self:
        """The same error, with a message that begins with the place where it was found."""
        error = copy.copy(self)
        error.args = (printable(f"{os.fspath(place)}: {self}"),)
        return error


class SourceNotFoundError(KabukiError, FileNotFoundError):
    """There is no source of this path or name."""


class DestinationExistsError(KabukiError, FileExistsError):
    """The destination exists, and the caller did not ask to replace it."""


class InvalidArgumentError(KabukiError, ValueError):
    """An argument has a value that it cannot have."""


class MissingDependencyError(KabukiError, ImportError):
    """An optional package is not installed. The message has the command that installs it."""


class _LocatedError(KabukiError):
    """An error in a source. Its message begins with the file."""

    def __init__(self, problem: str, file: str | os.PathLike[str]):
        self.problem, self.file = printable(problem), os.fspath(file)
        super().__init__(f"{self.file}: {problem}" if self.file else problem)

    def within(self, place: str | os.PathLike[str]) -> Self:
        error = super().within(place)
        error.file = self.file or os.fspath(place)
        return error


class SchemaMismatchError(_LocatedError):
    """The fields of a source do not fit those of another source or of the destination, or a required field is missing.

    Attributes:
      problem: the message without the file.
      file: the file or source whose fields do not fit; "" if it is not known.
      fields: paths of the fields that do not fit; empty if they are not known.

    Example:
      try:
          kabuki_rlds.convert(["a.hdf5", "b.hdf5"], "both.hdf5")
      except kabuki_rlds.SchemaMismatchError as e:
          print(e.file, e.fields)  # b.hdf5 ('action',)
    """

    def __init__(self, problem: str, *, file: str | os.PathLike[str] = "", fields: tuple[str, ...] = ()):
        super().__init__(problem, file)
        self.fields = fields


class DamagedDataError(_LocatedError):
    """Data cannot be read or contradict each other: a file is cut short, damaged, or was written incorrectly.

    Attributes:
      problem: the message without the file.
      file: the file or source; "" if it is not known.
      field: path of the field in the file; "" if no single field is damaged, or it is not known.
      rows: the rows that cannot be read, counted as the message does; None if they are not known.

    Example:
      try:
          kabuki_rlds.convert("lab.hdf5", "kabuki.hdf5")
      except kabuki_rlds.DamagedDataError as e:
          print(e.file, e.field, e.rows)  # lab.hdf5 observation/image range(0, 32)
    """

    def __init__(self, problem: str, *, file: str | os.PathLike[str] = "", field: str = "", rows: range | None = None):
        super().__init__(problem, file)
        self.field, self.rows = field, rows


def printable(text: str) -> str:
    """Text as one line of characters that can be seen."""
    line = " ".join(text.splitlines())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without the place in its graph that TensorFlow adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", lines[0]) if lines else ""
    return (line or type(error).__name__)[:400]
