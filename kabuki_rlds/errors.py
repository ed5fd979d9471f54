"""The errors that a user can act on, and the format of their messages.

All derive from `KabukiError`, and also from the built-in exception of the same meaning, if there is one.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Self

#: A longer message is shortened to so many characters, and begins with the first `_MAX_BEGIN` of the text.
_MAX_CHARACTERS = 800
_MAX_BEGIN = 600


class KabukiError(Exception):
    """Base class of all errors that a user can act on.

    The message is one line: what is wrong, where, and what to do. The command line prints it and exits with 1.

    The message may contain names and values from untrusted files. Line breaks are therefore replaced by spaces, and
    control characters are escaped. The middle of a message of more than 800 characters is left out.

    Example:
      try:
          kabuki_rlds.convert("lift.hdf5", "kabuki.hdf5")
      except kabuki_rlds.KabukiError as e:
          print(e)
    """

    def __init__(self, message: str):
        super().__init__(printable(message))

    def within(self, place: str | os.PathLike[str]) -> Self:
        """Returns a copy of the error whose message begins with `place`, for example a file name."""
        error = copy.copy(self)
        error.args = (printable(f"{os.fspath(place)}: {self}"),)
        return error


class SourceNotFoundError(KabukiError, FileNotFoundError):
    """No source has the given path or name."""


class DestinationExistsError(KabukiError, FileExistsError):
    """The destination exists, and `overwrite=True` was not given."""


class InvalidArgumentError(KabukiError, ValueError):
    """An argument has an invalid value."""


class MissingDependencyError(KabukiError, ImportError):
    """An optional package is not installed. The message contains the command that installs it."""


class _LocatedError(KabukiError):
    """An error in a source. The message begins with the file name."""

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
    """Data cannot be read or are inconsistent: a file is truncated, damaged, or was written incorrectly.

    Attributes:
      problem: the message without the file.
      file: the file or source; "" if it is not known.
      field: path of the field in the file; "" if no single field is damaged, or it is not known.
      rows: the rows that cannot be read, numbered as in the message; None if they are not known.

    Example:
      try:
          kabuki_rlds.convert("lab.hdf5", "kabuki.hdf5")
      except kabuki_rlds.DamagedDataError as e:
          print(e.file, e.field, e.rows)  # lab.hdf5 observation/image range(0, 32)
    """

    def __init__(self, problem: str, *, file: str | os.PathLike[str] = "", field: str = "", rows: range | None = None):
        super().__init__(problem, file)
        self.field, self.rows = field, rows


#: The part of HDF5's error messages that describes a failed system call: the number of the error, and its text.
_SYSTEM_CALL = re.compile(
    r"\((?:file \w+ failed|unable to \w+ file)\b[^()]*?\berrno = (\d+), error message = '([^']*)'[^()]*\)"
)


def system_error(error: BaseException) -> int | None:
    """Returns the number of the system's error, for example `errno.EIO`, in an `OSError` or an error of h5py."""
    found = _SYSTEM_CALL.search(str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def printable(text: str) -> str:
    """Returns the text as one line of printable characters. Other characters are escaped.

    The middle of a long text is left out: a name or a type in an untrusted file may have megabytes.
    """
    line = " ".join(_SYSTEM_CALL.sub(r"(\2)", text).splitlines())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    left_out = len(line) - _MAX_CHARACTERS
    if left_out <= 0:
        return line
    return f"{line[:_MAX_BEGIN]} … ({left_out:,} characters) … {line[_MAX_BEGIN + left_out :]}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without the graph node names that TensorFlow adds."""
    lines = [line.strip() for line in _SYSTEM_CALL.sub(r"(\2)", str(error)).splitlines() if line.strip()]
    line = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", lines[0]) if lines else ""
    return (line or type(error).__name__)[:400]
