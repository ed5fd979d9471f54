"""Detects files that are not the data: pointers of Git LFS and git-annex, web pages, archives.

A download can produce such a file without an error. The message says what the file is and how to get the data.
"""

from __future__ import annotations

import os
import re

from kabuki_rlds.errors import DamagedDataError

#: The start of the message, before the description of the file.
INSTEAD = "not the data, but "

_HEAD_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
#: The folder in which git-annex stores data. A pointer is a broken link into this folder, or a file with such a path.
_ANNEX = re.compile(r"annex/objects/")
_OF_ANNEX = "a git-annex pointer; run `git annex get .` in its repository"
#: The first bytes of archives and compressed files, and what to tell the user.
_PACKED = {
    b"\x1f\x8b\x08": "a gzip file; decompress it first (gunzip)",
    b"\xfd7zXZ\0": "an xz file; decompress it first (unxz)",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; decompress it first (unzstd)",
    b"PK\x03\x04": "a ZIP archive; unpack it first (unzip)",
}


def placeholder(path: str | os.PathLike[str], *, may_be_text: bool = False) -> str:
    """Describes a file that is not the data, and says how to get the data.

    Args:
      path: the file.
      may_be_text: whether real data can be text, for example JSON.

    Returns:
      the description, or "" if the file may be real data or cannot be read.
    """
    if os.path.islink(path) and not os.path.exists(path):
        return _OF_ANNEX if _ANNEX.search(os.readlink(path)) else ""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    if head.startswith(_LFS):
        return "a Git LFS pointer; run `git lfs pull` in its repository"
    if head.startswith(b"/annex/objects/"):
        return _OF_ANNEX
    if _WEB_PAGE.match(head):
        return "a web page; download the data again, with a login if the site asks for one"
    for begin, packed in _PACKED.items():
        if head.startswith(begin):
            return packed
    if head and not may_be_text and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"text that begins with {head[:40].decode().strip()!r}; download the data again"
    return ""


def check_is_data(path: str | os.PathLike[str], *, may_be_text: bool = False) -> None:
    """Checks that a file is not a placeholder.

    Raises:
      KabukiError: it is a placeholder. The message says how to get the data.
    """
    found = placeholder(path, may_be_text=may_be_text)
    if found:
        raise DamagedDataError(f"{INSTEAD}{found}", file=os.fspath(path))
