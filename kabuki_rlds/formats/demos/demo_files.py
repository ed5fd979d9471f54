"""Opens the files of a source one at a time, and checks that they do not change while they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kabuki_rlds.data.source import stamp
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.demos.layout import EpisodeLayout, Layout
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS


class DemoFiles:
    """The files of a source. At most one is open, since a source may have thousands.

    Args:
      layout: the layout of the files.
    """

    def __init__(self, layout: EpisodeLayout):
        self._layout = layout
        self._stack = contextlib.ExitStack()
        self._path = ""
        self._opened: Any = None
        self._stamps: dict[str, dict[str, list[int] | None]] = {}

    def open(self, path: str) -> Any:
        """Opens a file unless it is open, and closes the one before it.

        Raises:
          KabukiError: the file cannot be opened, or changed since it was opened first.
        """
        if self._path != path:
            self.close()
            was_opened_before = path in self._stamps
            self.check_unchanged(path)
            self._opened = self._stack.enter_context(self._layout.open(path, quiet=was_opened_before))
            self._path = path
        return self._opened

    def check_unchanged(self, path: str, *, has_same_episodes: bool = True) -> None:
        """Compares a file with the state in which it was opened first.

        Args:
          path: the file.
          has_same_episodes: whether the episodes in it are still the same.

        Raises:
          KabukiError: the file changed.
        """
        stamps = {file: stamp(file) for file in self._layout.files(path)}
        if not has_same_episodes or self._stamps.setdefault(path, stamps) != stamps:
            raise KabukiError(f"{path}: changed while it was read; run again when nothing writes to it")

    def close(self) -> None:
        """Closes the open file."""
        self._stack.close()
        self._path = ""


@contextlib.contextmanager
def reading_as(layout: Layout, path: str) -> Iterator[None]:
    """Turns errors of h5py and Arrow into a `DamagedDataError` that names the file."""
    try:
        yield
    except KabukiError:
        # Some derive from a built-in error too.
        raise
    except READ_ERRORS as e:
        raise DamagedDataError(f"cannot be read as {layout.name}: {e}", file=path) from e
