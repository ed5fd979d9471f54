"""Files that are there in place of data: pointers of Git LFS and git-annex, web pages, archives.

A download may end with one of these and no error. To copy such a file again gives the same file, so a message says what
it is and how to get the data.
"""

from __future__ import annotations

import os
import re

from kabuki_rlds.errors import DamagedDataError

#: What a message says before what the file is.
INSTEAD = "not the data, but "

_HEAD_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
#: Where git-annex keeps the data; a pointer is a link to it that leads nowhere, or a file with its path.
_ANNEX = re.compile(r"annex/objects/")
_OF_ANNEX = "a git-annex pointer; run `git annex get .` in its repository"
#: How archives and compressed files begin, and what to do with them.
_PACKED = {
    b"\x1f\x8b\x08": "a gzip file; decompress it first (gunzip)",
    b"\xfd7zXZ\0": "an xz file; decompress it first (unxz)",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; decompress it first (unzstd)",
    b"PK\x03\x04": "a ZIP archive; unpack it first (unzip)",
}


def placeholder(path: str | os.PathLike[str], *, may_be_text: bool = False) -> str:
    """What a file is instead of the data, and how to get these.

    Args:
      path: the file.
      may_be_text: whether the data would be text, like JSON.

    Returns:
      the explanation, or "" if the file may be the data, or cannot be read.
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
    """Refuses a file that is there in place of the data.

    Raises:
      KabukiError: it is one, and how to get the data.
    """
    found = placeholder(path, may_be_text=may_be_text)
    if found:
        raise DamagedDataError(f"{INSTEAD}{found}", file=os.fspath(path))
