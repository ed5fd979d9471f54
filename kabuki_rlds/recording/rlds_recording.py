"""The folder of an RLDS dataset that is being recorded into.

    hopper/1.0.0/
      features.json  dataset_info.json  …      as TFDS writes them
      hopper-train.tfrecord-00000              shards that dataset_info.json lists
      hopper-train.recording                   the journal: episodes since the last shard

An episode is on the disk, in the journal, when `append` returns. The journal becomes
the next shard when it has a shard's size, and at the end: first it gets the shard's
name, then `dataset_info.json` is replaced by one that lists it. That replacement is
the only step that TFDS sees. Whenever the process is killed, what is there is one of
these, which the next run takes up and `RldsSource` reads as it is: a journal, perhaps
with half a record at its end; or a shard that is not listed yet.
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

#: A journal of so many bytes becomes a shard.
_SHARD_BYTES = 256 << 20

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"
#: Where TFDS writes its files before each takes its place.
_STAGING = ".recording.partial"


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of the dataset's version, for `runs/hopper`: `runs/hopper/1.0.0`, or the newest that is there."""
    folder = paths.local_path(path).absolute()
    if _VERSION.fullmatch(folder.name) or (folder / _INFO).exists():
        return folder
    there = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)] if folder.is_dir() else []
    return folder / max(there, key=lambda name: tuple(map(int, name.split("."))), default="1.0.0")


class RldsRecording:
    """One split of a dataset, to which episodes are appended. No other process can do so meanwhile.

    Opening it takes up what a killed process left.

    Args:
      folder: the folder of the dataset's version, which is made if it is not there.
      split: name of the split.
      name: what to call the dataset, if it is not there; characters that TFDS does not
        take are replaced.

    Attributes:
      folder: the same.
      features: those of the dataset; None until they are declared.
      num_written: how many episodes were appended.

    Raises:
      KabukiError: another process records there, or there is something that nothing
        can be appended to.
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
                raise KabukiError(f"{folder}: has {journals[0]}, but no {_INFO} that says what is in it")
        except OSError as e:
            self.close()
            raise KabukiError(f"{e.filename or folder}: what is there cannot be taken up ({e.strerror})") from e
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
        """Says what the episodes hold: for a new dataset, before the first of them.

        Until there is a second one it can be said anew, once the first has what is new.

        Raises:
          KabukiError: it cannot be written.
        """
        with self._writing():
            self._declare(features, info)
        self.features = self._info.features

    def _declare(self, features: tfds.features.FeaturesDict, info: Info) -> None:
        version = self.folder.name if _VERSION.fullmatch(self.folder.name) else dataset_info.valid_version(info.version)
        staging = self._staging()
        empty = self._split_info(self.name, [], 0)
        # Each episode that is recorded has a row for its last observation.
        no_steps = np.zeros(0, bool)
        dataset_info.write_info(
            staging, self.name, "", version, features, info, [empty], "tfrecord", {self._split: no_steps}
        )
        # What opens the dataset comes last.
        for file in sorted(staging.iterdir(), key=lambda file: file.name == _INFO):
            os.replace(file, self.folder / file.name)
        staging.rmdir()
        self._locked.sync()
        if self._journal is None:
            self._open()
        else:
            self._info = dataset_dir.open_info(self.folder)

    def append(self, record: bytes) -> None:
        """Adds an episode, which is on the disk when this returns.

        Raises:
          KabukiError: it cannot be written.
        """
        if self._journal is not None and self._journal.size >= _SHARD_BYTES:
            self.publish()
        if self._journal is None:
            self._journal = AppendLog(self._journal_path)
        self._last = self._journal.append(record)
        self.num_written += 1

    def replace_last(self, record: bytes) -> None:
        """Writes another in the place of the episode that was appended last."""
        assert self._journal is not None and self._last is not None, "one was appended"
        self._journal.replace(self._last, record)

    def take_back(self) -> None:
        """Removes the episode that was appended last."""
        assert self._journal is not None and self._last is not None, "one was appended"
        self._journal.take_back(self._last)
        self._last = None
        self.num_written -= 1

    @property
    def num_episodes(self) -> int:
        """How many episodes the shards of the split have."""
        return sum(self._lengths)

    def publish(self) -> None:
        """Makes the journal a shard.

        Raises:
          KabukiError: the disk is full, or the like. All episodes are kept.
        """
        ended, self._last = self._journal, None
        if ended is None:
            return
        with self._writing():
            ended.sync()
            scan = self._make_shard(ended.path)
            # Not before: the next episode begins the journal anew.
            self._journal = None
            ended.close()
            self._list_shard(scan)

    def close(self) -> None:
        """Lets others record here."""
        if self._locked.is_locked and self._info is None:
            self._locked.remove_created()
        self._locked.unlock()

    # --- the shards ---

    @property
    def _lengths(self) -> list[int]:
        """How many episodes each shard has that is listed."""
        splits = {} if self._info is None else self._info.splits
        return list(splits[self._split].shard_lengths) if self._split in splits else []

    @property
    def _journal_path(self) -> pathlib.Path:
        return recorded_shards.log_path(self.folder, self.name, self._split)

    def _shard_path(self, index: int) -> pathlib.Path:
        return recorded_shards.shard_path(self.folder, self.name, self._split, index)

    def _make_shard(self, path: pathlib.Path) -> Scan:
        """Gives a journal the name of the next shard, if it holds anything."""
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
        """Replaces `dataset_info.json` by one with this split."""
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

    # --- what is there already ---

    def _open(self) -> None:
        """Reads what is there already, and makes it whole."""
        self._info = dataset_dir.open_info(self.folder)
        # What is written takes its name from the dataset's.
        dataset_dir.check_inside(os.fspath(self._shard_path(0)), self.folder)
        file_format = self._info.file_format.value if self._info.file_format else "tfrecord"
        if file_format != "tfrecord":
            raise KabukiError(f"{self.folder}: its shards are {file_format}; only to tfrecord can be appended")
        self._take_up_names()
        self._take_up_episodes()
        # Where there is none yet, what they hold may still be said anew.
        if any(split.num_examples for split in self._info.splits.values()):
            self.features = self._info.features

    def _take_up_episodes(self) -> None:
        """Makes shards of what a killed process left."""
        while (orphan := self._shard_path(len(self._lengths))).exists():
            self._list_shard(Scan(orphan))
        left = self._journal_path
        if left.exists():
            cut = append_log.repair(left)
            before = self.num_episodes
            self._list_shard(self._make_shard(left))
            _log.info(
                "%s: took up %d episodes that a recording left behind%s",
                self.folder,
                self.num_episodes - before,
                f", and cut off {cut} bytes of one that was not whole" if cut else "",
            )

    def _take_up_names(self) -> None:
        """Gives the shards names without their number, where another program wrote them."""
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
        # Now each shard has two names, of which the old ones go.
        for old in self.folder.glob(f"{self.name}-{self._split}.tfrecord-?????-of-?????"):
            new = self._shard_path(int(old.name[-14:-9]))
            if new.exists() and os.path.samefile(old, new):
                old.unlink()

    def _link(self, old: pathlib.Path, new: pathlib.Path) -> None:
        try:
            os.link(old, new)
        except FileExistsError:
            if not os.path.samefile(old, new):
                raise KabukiError(f"{new}: there, but not listed in {_INFO}; move it away") from None
        except OSError as e:
            raise KabukiError(f"{old}: cannot be given the name {new.name} too ({e.strerror})") from e

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
            raise KabukiError(f"{where}: cannot be written ({e.strerror}); the episodes before are kept") from e
