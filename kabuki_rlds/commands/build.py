"""Builds RLDS datasets, as TFDS reads them, from Kabuki files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tqdm import tqdm

from kabuki_rlds.data.common_schema import common_schema, fit_block, with_common_shapes
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.nan_actions import NanRows
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.data.source import Fingerprints, Size, Source
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import InvalidArgumentError, KabukiError, SchemaMismatchError
from kabuki_rlds.extras import require
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath, local_path, path_list
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import decide_last_rows
from kabuki_rlds.transforms.transfer import Transferred, progress_bar, transfer

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.formats.rlds.infer_features import ImageFormat

#: One file or several in order, all of the split `train`; or those of each split.
Files: TypeAlias = StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]]

_log = logging.getLogger("kabuki_rlds")

_NAME = re.compile(r"(?P<name>[a-zA-Z]\w*)(/(?P<config>[\w+.-]+))?")
_SPLIT = re.compile(r"\w[\w-]*")


@dataclasses.dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
      path: the folder of the dataset's version, which `tfds.builder_from_directory` takes.
      splits: name of each split to number of its episodes.
      steps: number of steps of all splits.
      num_bytes: size on disk.
      last_rows: split to whether the last row of each of its episodes is a step, and why.
      nan_actions: split to the rows whose action has a NaN, by field.
    """

    path: pathlib.Path
    splits: dict[str, int]
    steps: int
    num_bytes: int
    last_rows: dict[str, LastRows]
    nan_actions: dict[str, list[NanRows]]

    @property
    def episodes(self) -> int:
        """Number of episodes of all splits."""
        return sum(self.splits.values())


@signals.held_back()
def build(
    files: Files,
    data_dir: StrPath,
    *,
    name: str | None = None,
    file_format: Literal["tfrecord", "array_record"] = "tfrecord",
    images: ImageFormat | None = None,
    recipe: StrPath | None = None,
    assume: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    last_row: LastRow | None = None,
    skip_bad_episodes: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Built:
    """Builds an RLDS dataset that `tfds.load` reads, from Kabuki files or from demonstrations in a layout of others.

    Its features are those that the first file came from, where it came from RLDS,
    else derived from its arrays: see `formats.rlds.infer_features`. The episodes of a split
    are in the order of its files, and TFDS reads them in this order.

    The dataset is written beside its folder and renamed when it is whole: an error
    leaves nothing, and an old dataset as it was.

    Args:
      files: whatever `convert` takes: one, or several that are stitched in the order given,
        for the split `train`, or for those that the recipe makes; or split to file or files.
      data_dir: where the dataset goes: `<data_dir>/<name>/<version>`.
      name: name of the dataset, with `/` that of a config; by default what the first
        file says, else its name.
      file_format: of the shards.
      images: how images that are stored as arrays are encoded; "jpeg" is lossy. None is the
        format that their original files had, or PNG if it is not known. Those that are
        stored as image files stay as they are.
      recipe: how the fields of the files become those of the dataset: a YAML file, or the
        name of a recipe that comes with the package.
      assume: what files in a layout of others do not say: see `convert`.
      fill: constants for required fields that the files lack: {"reward": 0.0}.
      last_row: whether the last row of each episode is a "step" or only an "observation": see `convert`. The
        dataset's `metadata.json` keeps it.
      skip_bad_episodes: leave out damaged episodes; see `convert`.
      overwrite: replace the dataset of this name and version.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: a file cannot be read, files do not fit each other, a value cannot
        be stored as its feature says, a file changed meanwhile, or the dataset exists
        or cannot be written.
    """
    require("build", "tensorflow", "tensorflow_datasets")
    data_dir = local_path(data_dir)
    with open_splits(files, images, ReadingOptions(recipe, assume, fill, last_row), skip_bad_episodes) as opened:
        from kabuki_rlds.files.atomic_folder import StagedFolder
        from kabuki_rlds.formats.rlds import dataset_info

        dataset, config = _dataset_name(name, opened)
        info = opened.first.schema.info
        version = dataset_info.valid_version(info.version)
        folder = data_dir.joinpath(dataset, *filter(None, [config]), version)
        with (
            StagedFolder(folder, overwrite=overwrite) as staged,
            progress_bar(opened.total_steps, dataset, progress) as bar,
        ):
            opened.check_disk(staged.partial)
            opened.warn_of_loss()
            splits, moved = {}, {}
            for split in opened.sources:
                template = dataset_info.shard_template(staged.partial, dataset, split, file_format)
                splits[split], moved[split] = opened.write(split, template, bar)
            is_step = {split: each.last_rows.is_step for split, each in moved.items()}
            dataset_info.write_info(
                staged.partial,
                dataset,
                config,
                version,
                opened.features,
                info,
                list(splits.values()),
                file_format,
                is_step,
            )
            staged.commit()
    return Built(
        folder,
        {split: each.num_episodes for split, each in moved.items()},
        sum(each.num_steps for each in moved.values()),
        sum(file.stat().st_size for file in folder.iterdir()),
        {split: each.last_rows for split, each in moved.items()},
        {split: each.nan_actions for split, each in moved.items()},
    )


class OpenedSplits:
    """The sources of the splits of one dataset, which fit each other.

    Attributes:
      sources: split to its sources, in order.
      schema: the fields of all of them.
      features: the TFDS features of all of them.
      fingerprints: the state of their files.
    """

    def __init__(self, sources: Mapping[str, Sequence[Source]], images: ImageFormat | None):
        self.sources = sources
        self._images = images
        every = [each for of_split in sources.values() for each in of_split]
        self.fingerprints = Fingerprints(every)
        self.schema, self.features = _common(every, images)
        self._sizes = {split: [self._size(source) for source in of_split] for split, of_split in sources.items()}

    def _size(self, source: Source) -> Size:
        size = source.size()
        return size if size.sample is None else dataclasses.replace(size, sample=fit_block(size.sample, self.schema))

    @property
    def first(self) -> Source:
        """The source whose name, version and so on the dataset takes."""
        return next(iter(self.sources.values()))[0]

    def num_episodes(self, split: str) -> int:
        return sum(source.num_episodes for source in self.sources[split])

    @property
    def total_steps(self) -> int:
        """How many steps all splits have, or about that many."""
        return sum(size.steps for sizes in self._sizes.values() for size in sizes)

    def check_disk(self, folder: pathlib.Path) -> None:
        """Refuses to begin where the disk cannot hold the records.

        Raises:
          KabukiError: it cannot.
        """
        needed, free = sum(self._num_bytes.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise KabukiError(
                f"{folder}: needs about {format_bytes(needed)}, but the disk has {format_bytes(free)} free"
            )

    def warn_of_loss(self) -> None:
        """Warns of images that were decoded from JPEG files and are encoded as such again."""
        from kabuki_rlds.formats.rlds.infer_features import images_encoded_again

        again = images_encoded_again(self.first.schema, self.features) if self._images is None else []
        if again:
            _log.warning(
                "encoded as JPEG again, as their original files were, which changes pixels a little: %s; --images png "
                "keeps them as they are",
                ", ".join(again),
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
          template: names the shards.
          bar: counts the steps.
          limit: take no more episodes than this.
          shard_config: TFDS's `ShardConfig`, None for its defaults.

        Returns:
          What TFDS keeps of the split, and what was written.

        Raises:
          KabukiError: a source cannot be read, or a value not be stored.
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
        """About how many bytes the records of each split take."""
        from kabuki_rlds.formats.rlds.sink import estimated_bytes

        return {split: estimated_bytes(sizes, self.features) for split, sizes in self._sizes.items()}


@contextlib.contextmanager
def open_splits(
    files: Files, images: ImageFormat | None = None, reading: ReadingOptions | None = None, skip_bad: bool = False
) -> Iterator[OpenedSplits]:
    """Opens the files of a dataset, and sees to it that they fit each other.

    Args:
      files: as in `build`.
      images: likewise.
      reading: how they are read.
      skip_bad: leave out damaged episodes.

    Raises:
      KabukiError: a file cannot be opened, a split cannot be named so, or files do not fit.
    """
    reading = reading or ReadingOptions()
    by_split = paths_of(files)
    if reading.splits and isinstance(files, Mapping):
        raise InvalidArgumentError(
            f"the recipe makes the splits {', '.join(reading.splits)}, and so do the sources ({', '.join(by_split)}); "
            "name them in one place: give the sources without a split, or remove `split` from the recipe"
        )
    if reading.splits:
        (paths,) = by_split.values()
        by_split = dict.fromkeys(reading.splits, paths)
    with contextlib.ExitStack() as stack:
        sources: dict[str, list[Source]] = {}
        for split, paths in by_split.items():
            opened = stack.enter_context(
                reading.open(paths, split=split if reading.splits else None, images="encoded", skip_bad=skip_bad)
            )
            for source in opened:
                source.last_rows = reading.last_rows_of(source)
            # A Kabuki file is read as it is: one that was made by hand may lack what RLDS can do without.
            bare = reading.recipe is None and not reading.fill
            sources[split] = [
                source if bare and isinstance(source, KabukiSource) else reading.complete(source) for source in opened
            ]
        yield OpenedSplits(sources, images)


def _first_episodes(sources: Sequence[Source], limit: int) -> list[Source]:
    """The first episodes of some sources. Whether last rows are steps is decided by all of each source."""
    found = []
    for source in sources:
        taken = min(source.num_episodes, limit)
        limit -= taken
        if taken:
            source.last_rows = source.last_rows or decide_last_rows(source)
            found.append(source.piece(0, taken))
    return found


def paths_of(files: Files) -> dict[str, list[StrPath]]:
    """Split to its files.

    Raises:
      KabukiError: there is none, or a split cannot be named so.
    """
    named = files if isinstance(files, Mapping) else {"train": files}
    paths = {split: path_list(f) for split, f in named.items()}
    for split in paths:
        if not _SPLIT.fullmatch(split) or split.lower() == "all":
            raise InvalidArgumentError(
                f"{split!r} cannot be the name of a split: letters, digits, _ and -, and not 'all'"
            )
        if not paths[split]:
            raise InvalidArgumentError(f"split {split!r}: no file to build it from")
    if not paths:
        raise InvalidArgumentError("no file to build from")
    return paths


def _common(sources: Sequence[Source], images: ImageFormat | None) -> tuple[Schema, tfds.features.FeaturesDict]:
    """The schema and the features of all sources."""
    from kabuki_rlds.formats.rlds.infer_features import features_of

    schemas = [source.schema for source in sources]
    common = common_schema(schemas, [source.label for source in sources])
    made = []
    for source in sources:
        try:
            made.append(features_of(with_common_shapes(source.schema, common, schemas), images))
        except KabukiError as e:
            raise e.within(source.label) from e
    for source, features in zip(sources[1:], made[1:], strict=True):
        if features.to_json() != made[0].to_json():
            raise SchemaMismatchError(
                f"{source.label} does not fit {sources[0].label}: their fields are the same, but not their attributes "
                "'features', which say how TFDS stores them"
            )
    return common, made[0]


def _dataset_name(name: str | None, opened: OpenedSplits) -> tuple[str, str]:
    """(name, config or "") of the dataset."""
    if name is not None:
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidArgumentError(
                f"{name!r} cannot be the name of a dataset: a letter, then letters, digits and _, "
                "then perhaps / and the name of a config"
            )
        return found["name"], found["config"] or ""
    found = _NAME.fullmatch(opened.first.schema.info.name)
    if found is not None:
        return found["name"], found["config"] or ""
    stem = re.sub(r"\W", "_", pathlib.Path(opened.first.origins[0].path).stem, flags=re.ASCII)
    return (stem if stem[:1].isalpha() else f"kabuki_{stem}"), ""
