"""Where a recording goes: the folder of an RLDS dataset, or an HDF5 file.

For an HDF5 file `hopper.hdf5` the same is recorded into a folder beside it,
`hopper.hdf5.recording/1.0.0`, and put into the file at the end, behind what the file
has already. The file says in its `sources` which folders it was made of, so a process
that is killed between making the file and removing the folder adds nothing twice.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from typing import TYPE_CHECKING

from kabuki_rlds.commands.convert import convert
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.recording.rlds_recording import RldsRecording, folder_of

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_SUFFIXES = (".hdf5", ".h5")
_NUMBERED = re.compile(r"(\d+)\.0\.0")


class Destination:
    """An RLDS dataset to record into.

    Args:
      path: `runs/hopper` or `runs/hopper/1.0.0`.
      split: name of the split.
      name: what to call a new dataset; by default as its folder.

    Attributes:
      recording: what episodes are appended to.
      features: those that the episodes must have; None where nothing is there yet.

    Raises:
      KabukiError: nothing can be recorded there.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, name: str = ""):
        folder = folder_of(path)
        if folder.is_file() or folder.parent.is_file():
            raise InvalidArgumentError(
                f"{path}: a file; name a folder, or a file that ends in {' or '.join(_SUFFIXES)}"
            )
        self.recording = RldsRecording(folder, split, name or folder.parent.name)
        self.features: tfds.features.FeaturesDict | None = self.recording.features

    def close(self) -> None:
        """Makes of all that was recorded what others can read.

        Raises:
          KabukiError: it cannot. All episodes are kept.
        """
        try:
            self.recording.publish()
        finally:
            self.recording.close()


class Hdf5Destination(Destination):
    """An HDF5 file to record into, which appears, or grows, when the recording ends.

    Args:
      path: the file.
      split: name of the split of the RLDS dataset beside it.
    """

    def __init__(self, path: str | os.PathLike[str], split: str):
        self._path = local_path(path).absolute()
        self._images_are_files = False
        self._split = split
        beside = self._path.with_name(f"{self._path.name}.recording")
        features, done = self._look(beside)
        there = {int(found[1]): p for p in beside.glob("*.0.0") if (found := _NUMBERED.fullmatch(p.name))}
        for number, folder in there.items():
            if number <= done:
                shutil.rmtree(folder)
        number = max([n for n in there if n > done], default=done + 1)
        super().__init__(beside / f"{number}.0.0", split, self._path.stem)
        self.features = self.features or features

    def close(self) -> None:
        try:
            self.recording.publish()
            folder = self.recording.folder
            if self.recording.num_episodes:
                before = [self._path] if self._path.exists() else []
                # A Kabuki file is one split, and says so where one is asked for.
                split = None if self._split == "train" else self._split
                try:
                    convert(
                        [*before, folder],
                        self._path,
                        split=split,
                        images="encoded" if self._images_are_files else "arrays",
                        overwrite=bool(before),
                    )
                except (KabukiError, OSError) as e:
                    why = f"{self._path}: cannot be written ({e.strerror})" if isinstance(e, OSError) else e
                    raise KabukiError(f"{why}; what was recorded is safe in {folder}, which convert reads") from e
            try:
                shutil.rmtree(folder)
                folder.parent.rmdir()
            except OSError as e:
                raise KabukiError(
                    f"{folder.parent}: cannot be removed ({e.strerror}); what was recorded is in {self._path}"
                ) from e
        finally:
            self.recording.close()

    def _look(self, beside: pathlib.Path) -> tuple[tfds.features.FeaturesDict | None, int]:
        """The features of the file that is there, and the number of the last recording that is in it."""
        if not self._path.exists():
            return None, 0
        from kabuki_rlds.formats.rlds.infer_features import features_of

        with KabukiSource(self._path) as source:
            source.check_whole()
            self._images_are_files = any(field.encoded for field in source.schema.steps.values())
            paths = [pathlib.Path(origin.path) for origin in source.origins]
            numbers = [int(n[1]) for p in paths if p.parent == beside.resolve() and (n := _NUMBERED.fullmatch(p.name))]
            try:
                return features_of(source.schema), max(numbers, default=0)
            except KabukiError as e:
                raise e.within(self._path) from e


def destination(path: str | os.PathLike[str], split: str) -> Destination:
    """An HDF5 file where the path ends like one, else an RLDS dataset."""
    is_file = pathlib.Path(path).suffix in _SUFFIXES
    try:
        return Hdf5Destination(path, split) if is_file else Destination(path, split)
    except OSError as e:
        raise KabukiError(f"{path}: nothing can be recorded there ({e.strerror or e})") from e
