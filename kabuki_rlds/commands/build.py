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

from kabuki_rlds.arguments import argument, renamed, warn_deprecated
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
      num_steps: number of steps of all splits.
      num_bytes: size on disk.
      last_rows: split to whether the last row of each of its episodes is a step, and why.
      nan_actions: split to the rows whose action has a NaN, by field.
    """

    path: pathlib.Path
    splits: dict[str, int]
    num_steps: int
    num_bytes: int
    last_rows: dict[str, LastRows]
    nan_actions: dict[str, list[NanRows]]

    steps = renamed("steps", "num_steps")
    episodes = renamed("episodes", "num_episodes")

    @property
    def num_episodes(self) -> int:
        """Number of episodes of all splits."""
        return sum(self.splits.values())


@signals.held_back()
def build(
    files: Files,
    out: StrPath | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    data_dir: StrPath | None = None,
    file_format: Literal["tfrecord", "array_record"] = "tfrecord",
    encode: ImageFormat | None = None,
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
      out: where the dataset goes: `<out>/<name>/<version>`.
      name: name of the dataset, with `/` that of a config; by default what the first
        file says, else its name.
      split: which split of each source, or which part of it: see `convert`. If the recipe makes several splits, the one
        to build; by default all of them.
      data_dir: where a TFDS name is looked up. Without `out`, it is where the dataset goes (deprecated).
      file_format: of the shards.
      encode: how images that are stored as arrays are encoded; "jpeg" is lossy. None is the
        format that their original files had, or PNG if it is not known. Those that are
        stored as image files stay as they are.
      images: deprecated name of `encode`.
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
    if images is not None:
        warn_deprecated(f"{argument('images', images)} is deprecated; use {argument('encode', images)}")
        encode = encode or images
    if out is None:
        if data_dir is None:
            raise InvalidArgumentError(f"{argument('out')}: no folder for the dataset is given")
        use = f"use {argument('out', str(data_dir))}"
        warn_deprecated(f"{argument('data_dir')} as the folder for the dataset is deprecated; {use}")
        out, data_dir = data_dir, None
    out = local_path(out)
    reading = ReadingOptions(recipe, assume, fill, last_row)
    with open_splits(files, encode, reading, skip_bad_episodes, split=split, data_dir=data_dir) as opened:
        from kabuki_rlds.files.atomic_folder import StagedFolder
        from kabuki_rlds.formats.rlds import dataset_info

        dataset, config = _dataset_name(name, opened)
        info = opened.first.schema.info
        version = dataset_info.valid_version(info.version)
        folder = out.joinpath(dataset, *filter(None, [config]), version)
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

        again = images_encoded_again(self.first.schema, self.features) if self._encode is None else []
        if again:
            _log.warning(
                "encoded as JPEG again, as their original files were, which changes pixels a little: %s; "
                "%s keeps them as they are",
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
    files: Files,
    encode: ImageFormat | None = None,
    reading: ReadingOptions | None = None,
    skip_bad: bool = False,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
) -> Iterator[OpenedSplits]:
    """Opens the files of a dataset, and sees to it that they fit each other.

    Args:
      files: as in `build`.
      encode: likewise.
      reading: how they are read.
      skip_bad: leave out damaged episodes.
      split: as in `build`.
      data_dir: likewise.

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
        if split is not None and split not in reading.splits:
            names = ", ".join(reading.splits)
            raise InvalidArgumentError(f"{argument('split')}: the recipe makes no split {split!r}, but {names}")
        (paths,) = by_split.values()
        by_split = dict.fromkeys(reading.splits if split is None else [split], paths)
    with contextlib.ExitStack() as stack:
        sources: dict[str, list[Source]] = {}
        for name, paths in by_split.items():
            taken = name if reading.splits else split
            opened = stack.enter_context(
                reading.open(paths, split=taken, data_dir=data_dir, images="encoded", skip_bad=skip_bad)
            )
            # A Kabuki file is read as it is: one that was made by hand may lack what RLDS can do without.
            bare = reading.recipe is None and not reading.fill
            sources[name] = [
                source if bare and isinstance(source, KabukiSource) else reading.complete(source) for source in opened
            ]
        yield OpenedSplits(sources, encode)


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


def _common(sources: Sequence[Source], encode: ImageFormat | None) -> tuple[Schema, tfds.features.FeaturesDict]:
    """The schema and the features of all sources."""
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
