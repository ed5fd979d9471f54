"""Builds RLDS datasets for TFDS from Kabuki files and other sources."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from kabuki_rlds.arguments import argument, renamed, warn_deprecated
from kabuki_rlds.commands.opened_splits import Files, OpenedSplits, open_splits
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.nan_actions import NanRows
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.extras import require
from kabuki_rlds.files import signals
from kabuki_rlds.files.paths import StrPath, local_path
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.transfer import progress_bar

if TYPE_CHECKING:
    from kabuki_rlds.formats.rlds.infer_features import ImageFormat

_NAME = re.compile(r"(?P<name>[a-zA-Z]\w*)(/(?P<config>[\w+.-]+))?")


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of `build`.

    Attributes:
      path: the folder of the dataset's version. Pass it to `tfds.builder_from_directory`.
      splits: maps each split to its number of episodes.
      num_steps: total number of steps of all splits.
      num_bytes: size on disk in bytes.
      last_rows: maps each split to whether the last row of each episode is a step, and the reason.
      nan_actions: maps each split to the rows whose action contains NaN, by field.
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
        """Total number of episodes of all splits."""
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
    """Builds an RLDS dataset for `tfds.load` from Kabuki files or other sources.

    If the first file was converted from RLDS, the dataset has the features of the original dataset. Otherwise the
    features are derived from the arrays: see `formats.rlds.infer_features`. The episodes of a split are in the order
    of its files. TFDS reads them in this order.

    The dataset is written to a temporary folder, which is renamed at the end. If an error occurs, no partial dataset is
    left, and an existing dataset is unchanged.

    Args:
      files: the sources, as in `convert`. One or several sources make the split `train`, or the splits of the recipe;
        several are concatenated in this order. A mapping from split to sources makes several splits.
      out: the parent folder. The dataset is written to `<out>/<name>/<version>`.
      name: name of the dataset, or `<name>/<config>`. The default is the dataset name stored in the first file, or
        else the file name.
      split: the split of each source, or a part of it: see `convert`. If the recipe defines several splits: the split
        to build; the default is all.
      data_dir: the folder in which a TFDS name is looked up. Deprecated: without `out`, the parent folder of
        the dataset.
      file_format: the format of the shards.
      encode: image format for images that are stored as arrays. "jpeg" is lossy. None means the format of the original
        image files, or PNG if it is not known. Images that are stored as image files are copied unchanged.
      images: deprecated name of `encode`.
      recipe: maps the fields of the files to those of the dataset: a YAML file or the name of a built-in recipe.
      assume: semantics that the source format leaves undefined: see `convert`.
      fill: constants for required fields that are missing from the files: {"reward": 0.0}.
      last_row: whether the last row of each episode is a "step" or only an "observation": see `convert`. The
        dataset's `metadata.json` stores the decision.
      skip_bad_episodes: leave out damaged episodes: see `convert`.
      overwrite: replace an existing dataset of this name and version.
      progress: show a progress bar on stderr.

    Returns:
      The folder of the dataset, its counts, and the decisions about last rows.

    Raises:
      KabukiError: a file cannot be read, the fields of the files are incompatible, a value does not fit its feature, a
        file changed during the build, or the dataset exists or cannot be written.

    Example:
      result = kabuki_rlds.build({"train": "a.hdf5", "val": "b.hdf5"}, "~/tensorflow_datasets", name="reach")
      dataset = tfds.builder_from_directory(result.path).as_dataset(split="train")
    """
    require("build", "tensorflow", "tensorflow_datasets")
    if images is not None:
        warn_deprecated(f"{argument('images', images)} is deprecated; use {argument('encode', images)}")
        encode = encode or images
    if out is None:
        if data_dir is None:
            raise InvalidArgumentError(f"{argument('out')} is required: the parent folder of the dataset")
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


def _dataset_name(name: str | None, opened: OpenedSplits) -> tuple[str, str]:
    """Returns the name and the config of the dataset. Without a config, the second is ""."""
    if name is not None:
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidArgumentError(
                f"{name!r} is not a valid dataset name: use a letter, then letters, digits and _; "
                "optionally add / and the name of a config"
            )
        return found["name"], found["config"] or ""
    found = _NAME.fullmatch(opened.first.schema.info.name)
    if found is not None:
        return found["name"], found["config"] or ""
    stem = re.sub(r"\W", "_", pathlib.Path(opened.first.origins[0].path).stem, flags=re.ASCII)
    return (stem if stem[:1].isalpha() else f"kabuki_{stem}"), ""
