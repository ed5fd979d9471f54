"""Appends encoded episodes to the folder of an RLDS dataset.

    hopper/1.0.0/
      features.json  dataset_info.json  …      as TFDS writes them
      hopper-train.tfrecord-00000              shards that dataset_info.json lists
      hopper-train.recording                   the journal: episodes since the last shard

When `append` returns, the episode is on disk, in the journal. The journal becomes the
next shard when it has the size of a shard, and when the recording ends. This takes two
steps: the journal is renamed to the shard, then `dataset_info.json` is replaced by a
version that lists the shard. TFDS sees only the second step.

If the process is killed, the folder has either a journal, whose last record may be
incomplete, or a shard that is not listed. `RldsSource` reads both, and the next recording
recovers both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import KabukiError, one_line
from kabuki_rlds.files import append_log, disk, paths
from kabuki_rlds.files.append_log import AppendLog
from kabuki_rlds.files.locked_folder import LockedFolder
from kabuki_rlds.files.records import Scan
from kabuki_rlds.formats.rlds import dataset_dir, dataset_info, recorded_shards

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_log = logging.getLogger("kabuki_rlds")

#: At this size in bytes, a journal becomes a shard.
_SHARD_BYTES = 256 << 20

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"
#: The folder to which TFDS writes its files before they are moved to the folder of the dataset.
_STAGING = ".recording.partial"


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a version of a dataset: for `runs/hopper`, its newest version, or `runs/hopper/1.0.0` if new."""
    folder = paths.local_path(path).absolute()
    if _VERSION.fullmatch(folder.name) or (folder / _INFO).exists():
        return folder
    there = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)] if folder.is_dir() else []
    return folder / max(there, key=lambda name: tuple(map(int, name.split("."))), default="1.0.0")


class RldsRecording:
    """Appends episodes to one split of a dataset. A lock keeps other processes from recording to it.

    The constructor recovers the episodes of a killed recording.

    Args:
      folder: the folder of a version of the dataset. It is created if it does not exist.
      split: name of the split.
      name: the name of a new dataset. Characters that TFDS does not allow are replaced.

    Attributes:
      folder: the folder of the version.
      features: the features of the dataset; None until they are declared.
      num_written: the number of episodes appended by this object.

    Raises:
      KabukiError: another process records to the dataset, or the dataset cannot be appended to.
    """

    def __init__(self, folder: pathlib.Path, split: str, name: str):
        self.folder = folder
        self.features: tfds.features.FeaturesDict | None = None
        self.num_written = 0
        self._split = split
        self._name = name
        self._info: Any = None
        self._journal: AppendLog | None = None
        self._last: int | None = None
        self._locked = LockedFolder(folder)
        try:
            if (folder / _INFO).exists():
                self._open()
            elif journals := sorted(p.name for p in folder.glob("*.recording")):
                raise KabukiError(f"{folder}: has {journals[0]} but no {_INFO} to read it with; use another folder")
        except OSError as e:
            self.close()
            raise KabukiError(f"{e.filename or folder}: the recording cannot be continued ({e.strerror})") from e
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The dataset's name."""
        if self._info is not None:
            return str(self._info.name)
        stem = re.sub(r"\W", "_", self._name, flags=re.ASCII)
        return stem if stem[:1].isalpha() else f"recording_{stem}"

    def declare(self, features: tfds.features.FeaturesDict, info: Info) -> None:
        """Stores the features and the description of a new dataset, before its first episode.

        The features can be declared again before the second episode. The first episode must
        then be rewritten with the new features before the call.

        Raises:
          KabukiError: the files of the dataset cannot be written.
        """
        with self._writing():
            self._declare(features, info)
        self.features = self._info.features

    def _declare(self, features: tfds.features.FeaturesDict, info: Info) -> None:
        version = self.folder.name if _VERSION.fullmatch(self.folder.name) else dataset_info.valid_version(info.version)
        staging = self._staging()
        empty = self._split_info(self.name, [], 0)
        # Every recorded episode has a row for its last observation.
        no_steps = np.zeros(0, bool)
        dataset_info.write_info(
            staging, self.name, "", version, features, info, [empty], "tfrecord", {self._split: no_steps}
        )
        # Move dataset_info.json last: without it, TFDS does not open the dataset.
        for file in sorted(staging.iterdir(), key=lambda file: file.name == _INFO):
            os.replace(file, self.folder / file.name)
        staging.rmdir()
        self._locked.sync()
        if self._journal is None:
            self._open()
        else:
            self._info = dataset_dir.open_info(self.folder)

    def append(self, record: bytes) -> None:
        """Appends an episode. It is on disk when this method returns.

        Raises:
          KabukiError: the episode cannot be written.
        """
        if self._journal is not None and self._journal.size >= _SHARD_BYTES:
            self.publish()
        if self._journal is None:
            self._journal = AppendLog(self._journal_path)
        self._last = self._journal.append(record)
        self.num_written += 1

    def replace_last(self, record: bytes) -> None:
        """Replaces the last appended episode."""
        assert self._journal is not None and self._last is not None, "one was appended"
        self._journal.replace(self._last, record)

    def remove_last(self) -> None:
        """Removes the last appended episode."""
        assert self._journal is not None and self._last is not None, "one was appended"
        self._journal.take_back(self._last)
        self._last = None
        self.num_written -= 1

    @property
    def num_episodes(self) -> int:
        """Number of episodes in the listed shards of the split."""
        return sum(self._lengths)

    def publish(self) -> None:
        """Turns the journal into a shard.

        Raises:
          KabukiError: the files cannot be written, for example because the disk is full. All episodes are kept.
        """
        ended, self._last = self._journal, None
        if ended is None:
            return
        with self._writing():
            ended.sync()
            scan = self._make_shard(ended.path)
            # Only now: without a journal, the next `append` begins a new one.
            self._journal = None
            ended.close()
            self._list_shard(scan)

    def close(self) -> None:
        """Releases the lock, so that other processes can record to the dataset."""
        if self._locked.is_locked and self._info is None:
            self._locked.remove_created()
        self._locked.unlock()

    # --- the shards ---

    @property
    def _lengths(self) -> list[int]:
        """Number of episodes of each listed shard."""
        splits = {} if self._info is None else self._info.splits
        return list(splits[self._split].shard_lengths) if self._split in splits else []

    @property
    def _journal_path(self) -> pathlib.Path:
        return recorded_shards.log_path(self.folder, self.name, self._split)

    def _shard_path(self, index: int) -> pathlib.Path:
        return recorded_shards.shard_path(self.folder, self.name, self._split, index)

    def _make_shard(self, path: pathlib.Path) -> Scan:
        """Renames a journal to the next shard, or deletes it if it is empty."""
        scan = Scan(path)
        if scan.records:
            os.rename(path, self._shard_path(len(self._lengths)))
        else:
            path.unlink()
        return scan

    def _list_shard(self, scan: Scan) -> None:
        if not scan.records:
            return
        num_bytes = self._info.splits[self._split].num_bytes if self._split in self._info.splits else 0
        self._commit(self._split_info(self.name, [*self._lengths, scan.records], num_bytes + scan.num_bytes))

    def _commit(self, split: Any) -> None:
        """Replaces `dataset_info.json` by a version with this split."""
        import tensorflow_datasets as tfds

        others = [other for name, other in self._info.splits.items() if name != self._split]
        self._info.set_splits(tfds.core.SplitDict([*others, split]))
        staging = self._staging()
        self._info.write_dataset_info_json(staging)
        disk.sync(staging / _INFO)
        os.replace(staging / _INFO, self.folder / _INFO)
        staging.rmdir()
        self._locked.sync()

    def _split_info(self, dataset: str, lengths: list[int], num_bytes: int) -> Any:
        import tensorflow_datasets as tfds

        template = dataset_info.shard_template(self.folder, dataset, self._split, "tfrecord")
        return tfds.core.SplitInfo(
            name=self._split,
            shard_lengths=lengths,
            num_bytes=num_bytes,
            filename_template=template.replace(template=recorded_shards.SHARD_TEMPLATE),
        )

    # --- an existing dataset ---

    def _open(self) -> None:
        """Opens an existing dataset and recovers the episodes of a killed recording."""
        self._info = dataset_dir.open_info(self.folder)
        # The names of new files contain the name of the dataset, which may be malicious.
        dataset_dir.check_inside(os.fspath(self._shard_path(0)), self.folder)
        file_format = self._info.file_format.value if self._info.file_format else "tfrecord"
        if file_format != "tfrecord":
            raise KabukiError(
                f"{self.folder}: has {file_format} shards, which cannot be appended to; record to another folder"
            )
        self._rename_shards()
        self._recover_episodes()
        # A dataset without episodes can still get other features.
        if any(split.num_examples for split in self._info.splits.values()):
            self.features = self._info.features

    def _recover_episodes(self) -> None:
        """Lists the shards and the journal that a killed process left."""
        while (orphan := self._shard_path(len(self._lengths))).exists():
            self._list_shard(Scan(orphan))
        left = self._journal_path
        if left.exists():
            cut = append_log.repair(left)
            before = self.num_episodes
            self._list_shard(self._make_shard(left))
            _log.info(
                "%s: recovered %d episodes of an interrupted recording%s",
                self.folder,
                self.num_episodes - before,
                f", and removed {cut} bytes of an incomplete episode" if cut else "",
            )

    def _rename_shards(self) -> None:
        """Renames shards of other programs to names without the number of shards, such as `-of-00003`."""
        if self._split not in self._info.splits:
            return
        split = self._info.splits[self._split]
        if split.filename_template.template != recorded_shards.SHARD_TEMPLATE:
            count = len(split.shard_lengths)
            for index in range(count):
                try:
                    old = split.filename_template.sharded_filepath(shard_index=index, num_shards=count)
                except ValueError as e:
                    raise KabukiError(f"{self.folder / _INFO}: shards of {self._split!r}: {one_line(e)}") from e
                dataset_dir.check_inside(os.fspath(old), self.folder)
                self._link(pathlib.Path(old), self._shard_path(index))
            self._commit(self._split_info(self.name, list(split.shard_lengths), split.num_bytes))
        # Now each shard has two names (hard links). Remove the old ones.
        for old in self.folder.glob(f"{self.name}-{self._split}.tfrecord-?????-of-?????"):
            new = self._shard_path(int(old.name[-14:-9]))
            if new.exists() and os.path.samefile(old, new):
                old.unlink()

    def _link(self, old: pathlib.Path, new: pathlib.Path) -> None:
        try:
            os.link(old, new)
        except FileExistsError:
            if not os.path.samefile(old, new):
                raise KabukiError(f"{new}: exists, but {_INFO} does not list it; move the file away") from None
        except OSError as e:
            raise KabukiError(f"{old}: cannot create a hard link {new.name} to this file ({e.strerror})") from e

    # --- the folder ---

    def _staging(self) -> pathlib.Path:
        staging = self.folder / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        return staging

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            where = e.filename or self.folder
            raise KabukiError(f"{where}: cannot be written ({e.strerror}); the earlier episodes are kept") from e
