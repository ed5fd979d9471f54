"""Changes a file in place and atomically: after a kill, the file has the old or the new content.

Writes beyond the old end go to the file immediately. Writes before it are kept in memory.
`commit` writes these to a journal, `<name>.journal`, then to the file, then deletes the
journal. The journal is a file of records (`files.records`):

1. The size of the file before the change, and the checksum of its first page.
2. Written by `commit`: the size after the change, the checksum of the new first page, and
   the new content of each changed page. The first page comes last.

If the process is killed before the second record is complete, the file has the old content
and unused bytes at its end. If it is killed later, `recover` writes the pages again.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import struct
from collections.abc import Iterator

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import disk, locks, records
from kabuki_rlds.files.append_log import AppendLog

_PAGE = 4096
_BEFORE = struct.Struct("<QI")
_AFTER = struct.Struct("<QI")
_PAGE_HEAD = struct.Struct("<QI")


def journal_path(path: pathlib.Path) -> pathlib.Path:
    """The journal of a file. Of a link, it is that of the file to which it leads."""
    return pathlib.Path(f"{os.path.realpath(path)}.journal")


class JournaledFile(io.RawIOBase):
    """An existing file opened for atomic changes, as a Python file object that `h5py.File` accepts.

    Without `commit`, the file is not changed.

    Args:
      path: the file.

    Raises:
      KabukiError: the file cannot be written, or another program has it open.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.destination = path
        self._error: OSError | None = None
        self._at = 0
        with disk.writing(path):
            self._file = os.open(path, os.O_RDWR)
        # The HDF5 library also locks files that it only reads.
        locks.lock(self._file, path, "another program has this file open; close it there, then run again")
        self._journal: AppendLog | None = None
        try:
            _recover(path, self._file)
            self._old_size = self._size = os.fstat(self._file).st_size
            self._held: dict[int, bytearray] = {}
            self._first = records.checksum(os.pread(self._file, _PAGE, 0))
            self._journal = AppendLog(journal_path(path))
            self._journal.append(_BEFORE.pack(self._old_size, self._first))
            with disk.writing(path):
                self._journal.sync()
        except BaseException:
            self.abort()
            raise

    def fileno(self) -> int:
        return self._file

    def reserve(self, start: int, nbytes: int) -> None:
        """Reserves `nbytes` of disk space from offset `start` on.

        Raises:
          KabukiError: the disk does not have the space.
        """
        disk.reserve(self._file, start, nbytes, self.destination)

    # --- what h5py calls ---

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        out = memoryview(buffer).cast("B")
        start, end = self._at, self._at + len(out)
        stored = os.pread(self._file, len(out), start)
        out[: len(stored)] = stored
        out[len(stored) :] = bytes(len(out) - len(stored))
        for page in range(start // _PAGE, -(-end // _PAGE)) if self._held else ():
            held = self._held.get(page)
            if held is not None:
                first = max(page * _PAGE, start)
                last = min(page * _PAGE + len(held), end)
                if first < last:
                    out[first - start : last - start] = held[first - page * _PAGE : last - page * _PAGE]
        self._at = end
        return len(out)

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        start, end = self._at, self._at + len(view)
        inside = max(min(end, self._old_size) - start, 0)
        try:
            if inside:
                self._hold(start, view[:inside])
            _write(self._file, view[inside:], start + inside)
        except OSError as e:
            # Do not raise here: HDF5 ends the process on a write error. `commit` raises the error.
            self._error = self._error or e
        self._at = end
        self._size = max(self._size, end)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        try:
            os.ftruncate(self._file, max(self._size, self._old_size))
        except OSError as e:
            self._error = self._error or e
        return self._size

    def flush(self) -> None:
        """Does nothing: `commit` writes the buffered pages."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _hold(self, start: int, view: memoryview) -> None:
        at = 0
        while at < len(view):
            page, offset = divmod(start + at, _PAGE)
            if page not in self._held:
                size = min(_PAGE, self._old_size - page * _PAGE)
                self._held[page] = bytearray(os.pread(self._file, size, page * _PAGE))
            held = self._held[page]
            part = view[at : at + len(held) - offset]
            held[offset : offset + len(part)] = part
            at += len(part)

    # --- the end ---

    def commit(self) -> None:
        """Applies the changes, waits until they are on the disk, and closes the file.

        Raises:
          KabukiError: writing failed. The file is not changed.
        """
        assert self._journal is not None
        with disk.writing(self.destination):
            if self._error is not None:
                raise self._error
            os.fsync(self._file)
            complete = self._journal.append(self._changes())
            try:
                self._journal.sync()
                disk.sync(self.destination.parent)
            except OSError:
                # `abort` would apply the changes of a complete journal.
                self._journal.take_back(complete)
                raise
        self.abort()

    def _changes(self) -> bytes:
        pages = sorted(self._held, reverse=True)
        first = records.checksum(bytes(self._held[0])) if 0 in self._held else self._first
        made = [_AFTER.pack(self._size, first)]
        for page in pages:
            made += [_PAGE_HEAD.pack(page, len(self._held[page])), bytes(self._held[page])]
        return b"".join(made)

    def abort(self) -> None:
        """Closes the file, without the changes if `commit` was not called."""
        if self._file < 0:
            return
        try:
            if self._journal is not None:
                self._journal.close()
                _recover(self.destination, self._file)
        finally:
            file, self._file = self._file, -1
            os.close(file)


def recover(path: pathlib.Path) -> None:
    """Completes or undoes the changes of a process that was killed. Does nothing if there is no journal.

    Raises:
      KabukiError: the change must be completed, but the file cannot be written, another program has it open, or the
    journal does not match the file.
    """
    journal = journal_path(path)
    if not journal.exists():
        return
    try:
        file = os.open(path, os.O_RDWR)
        is_locked = locks.lock(file, path, "another program has it open; close it there, then run again")
    except (OSError, KabukiError) as e:
        if not _is_whole(journal):
            # No recovery is needed to read the file: it has the old content, and unused bytes at its end.
            return
        if isinstance(e, KabukiError):
            raise
        raise KabukiError(
            f"{path}: a recording to this file was killed while it wrote, and the file cannot be completed "
            f"({e.strerror}); run `kabuki-rlds inspect {path}` once with permission to write to it"
        ) from e
    try:
        # Without a lock, the process that writes the journal may still run.
        if is_locked or _is_whole(journal):
            _recover(path, file)
    finally:
        os.close(file)


def _is_whole(journal: pathlib.Path) -> bool:
    try:
        return len(list(records.read(journal))) > 1
    except OSError:
        return True


def _recover(path: pathlib.Path, file: int) -> None:
    journal = journal_path(path)
    if not journal.exists():
        return
    strange = KabukiError(
        f"{journal}: does not match the content of {path.name}; if that file was replaced, delete the journal"
    )
    with disk.writing(path):
        size = os.fstat(file).st_size
        # Limit the size: a hostile journal could exhaust the memory.
        if journal.is_symlink() or not journal.is_file() or journal.stat().st_size > 2 * size + _PAGE:
            raise strange
        found = list(records.read(journal))
        if found:
            try:
                old_size, first = _BEFORE.unpack(found[0])
                new_size, new_first = _AFTER.unpack_from(found[1]) if len(found) > 1 else (old_size, first)
                pages = list(_pages(found[1])) if len(found) > 1 else []
            except struct.error:
                raise strange from None
            # If neither checksum matches, another program replaced or changed the file.
            matches = records.checksum(os.pread(file, _PAGE, 0)) in (first, new_first) and new_size <= size
            if not matches and len(found) > 1:
                raise strange
            for at, content in pages:
                if at + len(content) <= old_size:
                    _write(file, memoryview(content), at)
            if matches:
                os.ftruncate(file, new_size)
                os.fsync(file)
        # Without locks, another reader may have recovered the file at the same time.
        journal.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            disk.sync(path.parent)


def _pages(record: bytes) -> Iterator[tuple[int, bytes]]:
    at = _AFTER.size
    while at < len(record):
        page, size = _PAGE_HEAD.unpack_from(record, at)
        at += _PAGE_HEAD.size
        if at + size > len(record):
            raise struct.error("a page is truncated")
        yield page * _PAGE, record[at : at + size]
        at += size


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        at += written
        data = data[written:]
