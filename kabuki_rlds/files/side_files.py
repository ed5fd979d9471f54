"""Reads the small files next to the data of a dataset, such as JSON files, under a limit.

A file in an untrusted folder may be a pipe or a device, from which a program reads forever.
"""

from __future__ import annotations

import os
import stat

from kabuki_rlds.errors import KabukiError


def check_side_file(path: str | os.PathLike[str], max_bytes: int, remedy: str = "") -> int:
    """Checks a file that another library will read as a whole.

    Args:
      path: the file.
      max_bytes: the limit of its size.
      remedy: what to do about a larger file, for the message.

    Returns:
      its size in bytes.

    Raises:
      OSError: the file does not exist.
      KabukiError: it is not a regular file, or larger than the limit.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise KabukiError(f"{os.fspath(path)}: not a regular file")
    _check_size(path, status.st_size, max_bytes, remedy)
    return status.st_size


def read_side_file(path: str | os.PathLike[str], max_bytes: int, remedy: str = "") -> bytes:
    """Returns the content of a file. Arguments and errors as `check_side_file`; an `OSError` if it cannot be read."""
    check_side_file(path, max_bytes, remedy)
    with open(path, "rb") as file:
        # Files in /proc, for example, are larger than their stated size.
        content = file.read(max_bytes + 1)
    _check_size(path, len(content), max_bytes, remedy)
    return content


def _check_size(path: str | os.PathLike[str], size: int, max_bytes: int, remedy: str) -> None:
    if size > max_bytes:
        what_to_do = f". {remedy}" if remedy else ""
        raise KabukiError(f"{os.fspath(path)}: has {size:,} bytes, more than the limit of {max_bytes:,}{what_to_do}")
