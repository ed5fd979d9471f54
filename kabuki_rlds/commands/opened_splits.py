"""Opens the sources of the splits of an RLDS dataset, and writes each split."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tqdm import tqdm

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.common_schema import common_schema, fit_block, with_common_shapes
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.data.source import Fingerprints, Size, Source
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import InvalidArgumentError, KabukiError, SchemaMismatchError
from kabuki_rlds.files.paths import StrPath, path_list
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import decide_last_rows
from kabuki_rlds.transforms.transfer import Transferred, transfer

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.formats.rlds.infer_features import ImageFormat

#: One or several files of the split `train`, in order; or a mapping from split to files.
Files: TypeAlias = StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]]

_log = logging.getLogger("kabuki_rlds")

_SPLIT = re.compile(r"\w[\w-]*")


class OpenedSplits:
    """The opened sources of the splits of one dataset. Their fields are compatible.

    Attributes:
      sources: maps each split to its sources, in order.
      schema: the common schema of all sources.
      features: the TFDS features of the dataset.
      fingerprints: the state of the sources' files when they were opened.
    """

    def __init__(self, sources: Mapping[str, Sequence[Source]], encode: ImageFormat | None):
        self.sources = sources
        self._encode = encode
        every = [each for of_split in sources.values() for each in of_split]
        self.fingerprints = Fingerprints(every)
        self.schema, self.features = _common(every, encode)
        self._sizes = {split: [self._size(source) for source in of_split] for split, of_split in sources.items()}

    def _size(self, source: Source) -> Size:
        size = source.size()
        return size if size.sample is None else dataclasses.replace(size, sample=fit_block(size.sample, self.schema))

    @property
    def first(self) -> Source:
        """The source that gives the dataset its name, version and description."""
        return next(iter(self.sources.values()))[0]

    def num_episodes(self, split: str) -> int:
        return sum(source.num_episodes for source in self.sources[split])

    @property
    def total_steps(self) -> int:
        """The total number of steps of all splits, possibly an estimate."""
        return sum(size.steps for sizes in self._sizes.values() for size in sizes)

    def check_disk(self, folder: pathlib.Path) -> None:
        """Checks that the disk has space for the records.

        Raises:
          KabukiError: the disk has too little space.
        """
        needed, free = sum(self._num_bytes.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise KabukiError(
                f"{folder}: needs about {format_bytes(needed)}, but the disk has {format_bytes(free)} free"
            )

    def warn_of_loss(self) -> None:
        """Warns if images that were decoded from JPEG files are encoded as JPEG again."""
        from kabuki_rlds.formats.rlds.infer_features import images_encoded_again

        again = images_encoded_again(self.first.schema, self.features) if self._encode is None else []
        if again:
            _log.warning(
                "images are encoded as JPEG again, like their original files, which slightly changes pixels: %s; "
                "%s keeps the pixels unchanged",
                ", ".join(again),
                argument("encode", "png"),
            )

    def write(
        self,
        split: str,
        template: tfds.core.ShardedFileTemplate,
        bar: tqdm[Any],
        *,
        limit: int | None = None,
        shard_config: Any = None,
    ) -> tuple[tfds.core.SplitInfo, Transferred]:
        """Writes the shards of a split.

        Args:
          split: the split.
          template: the template of the shard names.
          bar: the progress bar, in steps.
          limit: the maximum number of episodes.
          shard_config: TFDS's `ShardConfig`. None means the TFDS defaults.

        Returns:
          The `SplitInfo` of the split, and the counts and reports of the transfer.

        Raises:
          KabukiError: a source cannot be read, or a value cannot be stored.
        """
        from kabuki_rlds.formats.rlds.sink import SplitSink, shard_lengths

        sources = self.sources[split] if limit is None else _first_episodes(self.sources[split], limit)
        taken = sum(source.num_episodes for source in sources)
        num_bytes = self._num_bytes[split] * taken // max(self.num_episodes(split), 1)
        with SplitSink(template, self.features, shard_lengths(taken, num_bytes, shard_config)) as sink:
            moved = transfer(sources, sink, self.schema, self.fingerprints, bar, label=f"split {split}")
        return sink.info, moved

    @functools.cached_property
    def _num_bytes(self) -> dict[str, int]:
        """Maps each split to the estimated size of its records in bytes."""
        from kabuki_rlds.formats.rlds.sink import estimated_bytes

        return {split: estimated_bytes(sizes, self.features) for split, sizes in self._sizes.items()}


@contextlib.contextmanager
def open_splits(
    files: Files,
    encode: ImageFormat | None = None,
    reading: ReadingOptions | None = None,
    skip_bad: bool = False,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
) -> Iterator[OpenedSplits]:
    """Opens the files of a dataset. A context manager that closes them at the end.

    Args:
      files: as in `build`.
      encode: as in `build`.
      reading: the options for reading the files.
      skip_bad: leave out damaged episodes.
      split: as in `build`.
      data_dir: as in `build`.

    Raises:
      KabukiError: a file cannot be opened, a split name is invalid, or the fields of the files are incompatible.
    """
    reading = reading or ReadingOptions()
    by_split = paths_of(files)
    if reading.splits and isinstance(files, Mapping):
        raise InvalidArgumentError(
            f"both the recipe ({', '.join(reading.splits)}) and the sources ({', '.join(by_split)}) define splits; "
            "give the sources without a split, or remove `split` from the recipe"
        )
    if reading.splits:
        if split is not None and split not in reading.splits:
            names = ", ".join(reading.splits)
            raise InvalidArgumentError(f"{argument('split')}: the recipe has no split {split!r}, it has {names}")
        (paths,) = by_split.values()
        by_split = dict.fromkeys(reading.splits if split is None else [split], paths)
    with contextlib.ExitStack() as stack:
        sources: dict[str, list[Source]] = {}
        for name, paths in by_split.items():
            taken = name if reading.splits else split
            opened = stack.enter_context(
                reading.open(paths, split=taken, data_dir=data_dir, images="encoded", skip_bad=skip_bad)
            )
            # Kabuki files are not completed: a handwritten file may omit fields that RLDS does not require.
            bare = reading.recipe is None and not reading.fill
            sources[name] = [
                source if bare and isinstance(source, KabukiSource) else reading.complete(source) for source in opened
            ]
        yield OpenedSplits(sources, encode)


def _first_episodes(sources: Sequence[Source], limit: int) -> list[Source]:
    """Returns the first `limit` episodes of some sources.

    Whether last rows are steps is decided from all episodes of a source.
    """
    found = []
    for source in sources:
        taken = min(source.num_episodes, limit)
        limit -= taken
        if taken:
            source.last_rows = source.last_rows or decide_last_rows(source)
            found.append(source.piece(0, taken))
    return found


def paths_of(files: Files) -> dict[str, list[StrPath]]:
    """Returns the files of each split.

    Raises:
      KabukiError: no file is given, or a split name is invalid.
    """
    named = files if isinstance(files, Mapping) else {"train": files}
    paths = {split: path_list(f) for split, f in named.items()}
    for split in paths:
        if not _SPLIT.fullmatch(split) or split.lower() == "all":
            raise InvalidArgumentError(
                f"{split!r} is not a valid split name: use letters, digits, _ and -; 'all' is reserved"
            )
        if not paths[split]:
            raise InvalidArgumentError(f"split {split!r}: no files are given")
    if not paths:
        raise InvalidArgumentError("no files are given")
    return paths


def _common(sources: Sequence[Source], encode: ImageFormat | None) -> tuple[Schema, tfds.features.FeaturesDict]:
    """Returns the common schema of all sources, and the TFDS features of the dataset."""
    from kabuki_rlds.formats.rlds.infer_features import features_of

    schemas = [source.schema for source in sources]
    common = common_schema(schemas, [source.label for source in sources])
    made = []
    for source in sources:
        try:
            made.append(features_of(with_common_shapes(source.schema, common, schemas), encode))
        except KabukiError as e:
            raise e.within(source.label) from e
    for source, features in zip(sources[1:], made[1:], strict=True):
        if features.to_json() != made[0].to_json():
            raise SchemaMismatchError(
                f"{source.label} is incompatible with {sources[0].label}: they have the same fields, but different "
                "TFDS features in the attribute 'features'"
            )
    return common, made[0]
