"""The errors that are meant for the person who runs the tool, and their text.

All derive from `KabukiError`; where Python has an error of the same meaning, from that too.
"""

import re


class KabukiError(Exception):
    """Something that the user can act on.

    The message is one line: what is wrong, where, and what to do about it. The
    command line prints it as it is and exits with 1; a library user may catch it.

    A name or a value in it may come from a stranger's file, so it is made one line,
    and characters that a terminal would obey are spelt out.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class SourceNotFoundError(KabukiError, FileNotFoundError):
    """There is no source of this path or name."""


class DestinationExistsError(KabukiError, FileExistsError):
    """The destination exists, and the caller did not ask to replace it."""


class InvalidArgumentError(KabukiError, ValueError):
    """An argument has a value that it cannot have."""


class MissingDependencyError(KabukiError, ImportError):
    """An optional package is not installed. The message has the command that installs it."""


def printable(text: str) -> str:
    """Text as one line of characters that can be seen."""
    line = " ".join(text.splitlines())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without the place in its graph that TensorFlow adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", lines[0]) if lines else ""
    return (line or type(error).__name__)[:400]
