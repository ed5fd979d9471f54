"""Records to a Kabuki HDF5 file.

Each episode is first written to a log, `hopper.hdf5.recording/episodes.log` (see
`formats.episode_log`). When the log is large, and when the recording ends, its episodes
are appended to the file and the log is deleted. The log states how many episodes the file
had before. So if the process is killed after the append and before the deletion, the
episodes are not appended twice.

A new recording first appends the episodes of earlier, interrupted recordings: a log, and
the RLDS datasets `1.0.0`, `2.0.0`, … that earlier versions of this package wrote to the
same folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged
from kabuki_rlds.data.common_schema import check_equal
from kabuki_rlds.data.schema import BYTES, Field, Info, Schema
from kabuki_rlds.data.source import Fingerprints, Origin, Source
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files import append_log, disk, journaled_file, locks, signals
from kabuki_rlds.files.append_log import AppendLog
from kabuki_rlds.files.locked_folder import LockedFolder
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.formats.episode_log import codec
from kabuki_rlds.formats.episode_log.source import EpisodeLogSource
from kabuki_rlds.formats.hdf5.appending_sink import AppendingSink, check_appendable
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.images.encode import image_files
from kabuki_rlds.transforms.transfer import progress_bar, transfer

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_log = logging.getLogger("kabuki_rlds")

#: At about this size in bytes, the episodes of a log are appended to the file.
_LOG_BYTES = 64 << 20

#: The name of an RLDS dataset that an earlier version of this package wrote.
_NUMBERED = re.compile(r"(\d+)\.0\.0")
#: The name of the copy of the file, which is made if another program has the file open.
_COPY = "copy.hdf5"


class Hdf5Destination:
    """A `Destination` that appends episodes to a Kabuki HDF5 file.

    Args:
      path: path of the file.
      split: name of the split of the episodes.
      config: the features of a new file; None to learn them from the first step.

    Raises:
      KabukiError: another process records to the file, or the file cannot be appended to.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, config: tfds.rlds.rlds_base.DatasetConfig | None):
        # Append to the file that a symbolic link leads to, and use one lock for all its names.
        self._path = pathlib.Path(os.path.realpath(local_path(path)))
        self._origin = Origin(os.fspath(self._path), split=split, format="recording")
        self.num_written = 0
        self._log: AppendLog | None = None
        self._last: int | None = None
        #: At this size of the log in bytes, its episodes are appended to the file.
        self._limit = _LOG_BYTES
        self._folder = LockedFolder(codec.folder_of(self._path))
        self._log_path = self._folder.path / codec.NAME
        #: The fields as stored in the log and the file. Image fields may hold pixels or image files.
        self._schema: Schema | None = None
        self.declared: Schema | None = None
        try:
            self._recover()
            if self._path.exists():
                self._schema = self._look()
                self.declared = dataclasses.replace(
                    self._schema, steps=_decoded(self._schema.steps), metadata=_decoded(self._schema.metadata)
                )
            elif config is not None:
                require(f"{path}: a TFDS DatasetConfig", "tensorflow", "tensorflow_datasets")
                from kabuki_rlds.recording.config_features import features_of_config, schema_of

                self.declared = schema_of(features_of_config(config))
        except BaseException:
            self.release()
            raise

    @property
    def is_defined(self) -> bool:
        return self._schema is not None

    def image_formats(self, schema: Schema) -> dict[str, str]:
        stored = {} if self._schema is None else self._schema.steps
        return {
            path: field.file_format or "png"
            for path, field in stored.items()
            if field.encoded and len(field.shape) == 3 and None not in field.shape
        }

    def define(self, schema: Schema, info: Info, episode: Block | None) -> None:
        stem = re.sub(r"\W", "_", self._path.stem, flags=re.ASCII)
        name = stem if stem[:1].isalpha() else f"recording_{stem}"
        before, old = self._schema, self._log
        self._schema = dataclasses.replace(schema, info=dataclasses.replace(info, name=name, version="1.0.0"))
        if old is not None:
            try:
                self._begin_log(episode)
            except BaseException:
                self._schema = before
                raise
            old.close()

    def append(self, episode: Block) -> None:
        if self._log is not None and self._log.size >= self._limit:
            self._try_to_publish(self._log.size)
        if self._log is None:
            self._begin_log(None)
        assert self._log is not None
        self._last = self._log.append(*self._packed(episode))
        self.num_written += 1

    def replace_last(self, episode: Block) -> None:
        assert self._log is not None and self._last is not None, "one was appended"
        self._log.replace(self._last, *self._packed(episode))

    def remove_last(self) -> None:
        assert self._log is not None and self._last is not None, "one was appended"
        self._log.take_back(self._last)
        self._last = None
        self.num_written -= 1

    def close(self) -> None:
        try:
            self._publish()
            try:
                self._folder.path.rmdir()
            except OSError as e:
                if self._path.exists():
                    raise KabukiError(
                        f"{self._folder.path}: cannot be removed ({e.strerror}); the episodes are in {self._path}"
                    ) from e
        finally:
            self.release()

    def release(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder.is_locked:
            self._folder.remove_created()
        self._folder.unlock()

    # --- the log ---

    def _begin_log(self, episode: Block | None) -> None:
        """Begins a log with one episode or none. It replaces an existing log."""
        assert self._schema is not None
        new = self._log_path.with_name(f"{self._log_path.name}.new")
        log = AppendLog(new)
        try:
            log.append(codec.Head(self._schema, self._origin, self._num_in_file()).pack())
            self._last = None if episode is None else log.append(*self._packed(episode))
            with disk.writing(self._log_path):
                os.replace(new, self._log_path)
        except BaseException:
            log.close()
            new.unlink(missing_ok=True)
            raise
        log.path = self._log_path
        self._log = log

    def _packed(self, episode: Block) -> list[Any]:
        """The parts of the log record of an episode. Pixels are encoded if the file stores image files."""
        assert self._schema is not None
        steps, metadata = (
            {path: _encoded(column, fields[path]) for path, column in columns.items() if path in fields}
            for columns, fields in ((episode.steps, self._schema.steps), (episode.metadata, self._schema.metadata))
        )
        return codec.pack_episode(dataclasses.replace(episode, steps=steps, metadata=metadata), self._schema)

    def _num_in_file(self) -> int:
        if not self._path.exists():
            return 0
        with KabukiSource(self._path, quiet=True) as source:
            return source.num_episodes

    # --- the file ---

    def _publish(self) -> None:
        """Appends the episodes of the log to the file."""
        log, self._log, self._last = self._log, None, None
        if log is None:
            return
        try:
            with disk.writing(self._log_path):
                log.sync()
            self._add_log()
        except BaseException:
            self._log = log
            raise
        log.close()

    def _add_log(self) -> None:
        source = EpisodeLogSource(self._folder.path)
        try:
            if source.num_episodes and not source.is_appended:
                self._add(source)
        except (KabukiError, OSError) as e:
            why = e if isinstance(e, KabukiError) else f"{self._path}: cannot be written ({e.strerror})"
            raise KabukiError(f"{why}; the episodes are safe in {self._folder.path}, which convert can read") from e
        with disk.writing(self._folder.path):
            self._log_path.unlink()
            self._folder.sync()

    def _add(self, source: Source) -> None:
        """Appends the episodes of a source to the file."""
        label = os.fspath(self._path)
        with signals.held_back(), self._sink(source) as sink, progress_bar(0, label, False) as bar:
            transfer([source], sink, source.schema, Fingerprints([source]), bar, label=label, check_rules=True)

    @contextlib.contextmanager
    def _sink(self, source: Source) -> Iterator[KabukiSink]:
        if not self._path.exists():
            with KabukiSink(self._path, source.schema, source.origins) as sink:
                yield sink
            return
        with KabukiSource(self._path, quiet=True) as there:
            schema = there.schema
            check_equal(schema, source.schema, os.fspath(self._path), source.label)
        path = self._path
        if not self._is_free():
            path = self._folder.path / _COPY
            shutil.copyfile(self._path, path)
        with AppendingSink(path, schema, source.origins) as sink:
            yield sink
        if path != self._path:
            os.replace(path, self._path)

    def _try_to_publish(self, size: int) -> None:
        """Tries to append the episodes of the log to the file. After a failure, the next try is at twice the size."""
        try:
            if self._is_free():
                self._publish()
                self._limit = _LOG_BYTES
                return
            why = f"{self._path}: another program has this file open"
        except KabukiError as e:
            why = str(e)
        self._limit = 2 * size
        _log.warning("%s. The recording continues, and its episodes stay in %s", why, self._folder.path)

    def _is_free(self) -> bool:
        """Whether no other program has the file open. The file must not change while a program reads it."""
        return not self._path.exists() or locks.can_lock(self._path)

    def _look(self) -> Schema:
        with KabukiSource(self._path, quiet=True) as source:
            source.check_complete()
            check_appendable(source)
            if not os.access(self._path, os.W_OK):
                raise KabukiError(f"{self._path}: no permission to write to it")
            return source.schema

    def _recover(self) -> None:
        """Appends the episodes of earlier, interrupted recordings to the file."""
        if self._path.exists():
            journaled_file.recover(self._path)
        for name in (_COPY, f"{_COPY}.journal", f"{codec.NAME}.new"):
            (self._folder.path / name).unlink(missing_ok=True)
        if self._log_path.exists():
            append_log.repair(self._log_path)
            before = self._num_in_file()
            self._add_log()
            added = self._num_in_file() - before
            _log.info("%s: added %d episodes of an earlier recording from %s", self._path, added, self._folder.path)
        for folder in self._datasets():
            self._add_dataset(folder)

    def _datasets(self) -> list[pathlib.Path]:
        """The RLDS datasets that earlier versions of this package wrote, in order."""
        found = {int(m[1]): p for p in self._folder.path.glob("*.0.0") if (m := _NUMBERED.fullmatch(p.name))}
        return [found[number] for number in sorted(found)]

    def _add_dataset(self, folder: pathlib.Path) -> None:
        require(f"{folder}: reading a recording of an earlier version", "tensorflow", "tensorflow_datasets")
        from kabuki_rlds.formats.rlds.source import RldsSource

        is_added = has_files = False
        if self._path.exists():
            with KabukiSource(self._path, quiet=True) as there:
                is_added = os.fspath(folder.resolve()) in [os.path.realpath(origin.path) for origin in there.origins]
                has_files = any(field.encoded for field in there.schema.steps.values())
        locked = LockedFolder(folder)
        try:
            if not (folder / "dataset_info.json").exists():
                if any(folder.glob("*.recording")) or any(folder.glob("*.tfrecord*")):
                    raise KabukiError(f"{folder}: has episodes but no dataset_info.json; move it to another folder")
            elif not is_added:
                source = RldsSource(folder, self._origin.split, "encoded" if has_files else "arrays")
                try:
                    if source.num_episodes:
                        self._add(source)
                finally:
                    source.close()
            shutil.rmtree(folder)
        finally:
            locked.unlock()


def _decoded(fields: dict[str, Field]) -> dict[str, Field]:
    """The fields, with pixels instead of image files."""
    return {path: dataclasses.replace(field, encoded=False) for path, field in fields.items()}


def _encoded(column: Column, field: Field) -> Column:
    """The column, with pixels encoded as image files if the field holds image files."""
    if not field.encoded or (isinstance(column, np.ndarray) and column.dtype == BYTES):
        return column
    file_format = field.file_format or "png"
    rows = list(column) if isinstance(column, np.ndarray) else _rows(column)
    if not field.is_list_of_images:
        files = np.empty(len(rows), BYTES)
        files[:] = image_files(rows, file_format)
        return files
    images = [image for row in rows for image in row.reshape(-1, *row.shape[-3:])]
    files = np.empty(len(images), BYTES)
    files[:] = image_files(images, file_format)
    return Ragged(files, np.array([[len(row)] for row in rows], np.int64).reshape(-1, 1))


def _rows(column: Column) -> list[np.ndarray]:
    assert isinstance(column, Ragged), "nested lists are rejected by new_column"
    splits = column.splits.tolist()
    shapes = map(tuple, column.shapes.tolist())
    return [column.values[a:b].reshape(shape) for a, b, shape in zip(splits, splits[1:], shapes, strict=False)]
