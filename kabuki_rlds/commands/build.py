"""Builds RLDS datasets, as TFDS reads them, from Kabuki files."""

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
