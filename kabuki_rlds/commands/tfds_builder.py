"""The TFDS builder for Kabuki files. `builders/kabuki_hdf5` imports it.

A `GeneratorBasedBuilder` encodes examples and their steps one at a time in Python, and this cannot be replaced.
Therefore the builder overrides `_download_and_prepare`, the lower-level hook that writes the dataset. TFDS does the
rest: the temporary folder, the names and number of shards, `dataset_info.json`, and reading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from kabuki_rlds.arguments import warn_deprecated
from kabuki_rlds.commands import beam_writer
from kabuki_rlds.commands.opened_splits import OpenedSplits, open_splits, paths_of
from kabuki_rlds.data.last_row import joined
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.rlds import dataset_info
from kabuki_rlds.formats.rlds.infer_features import ImageFormat
from kabuki_rlds.formats.rlds.stored_last_rows import to_metadata
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import decide_last_rows


@dataclasses.dataclass(eq=False)
class KabukiConfig(tfds.core.BuilderConfig):  # type: ignore[misc]  # TFDS ships no types
    """The files of a dataset and how to encode their images.

    Attributes:
      version: version of the dataset. The default is the version stored in the first file.
      path: a Kabuki HDF5 file, or several that are concatenated in this order, for the split `train`; or a mapping from
        split to files.
      encode: image format for images that are stored as arrays: "png" or "jpeg". The default is the format of the
        original image files, or PNG if it is not known.
      images: deprecated name of `encode`.
    """

    version: Any = None
    path: str | Sequence[str] | Mapping[str, str | Sequence[str]] = ()
    encode: ImageFormat | None = None
    images: ImageFormat | None = None

    def __post_init__(self) -> None:
        if self.images is not None:
            warn_deprecated(f"images={self.images!r} is deprecated; use encode={self.images!r}")
            self.encode = self.encode or self.images
        if self.encode not in (None, "png", "jpeg"):
            raise InvalidArgumentError(f"encode: {self.encode!r} is neither 'png' nor 'jpeg'")
        if self.path and self.version is None:
            # TFDS reads the version before it calls any other method.
            first = next(iter(paths_of(self.path).values()))[0]
            with ReadingOptions().open(first) as opened:
                self.version = dataset_info.valid_version(opened[0].schema.info.version)


class KabukiBuilder(FileReaderBuilder):  # type: ignore[misc]
    """Builds an RLDS dataset from the files of its config."""

    VERSION = tfds.core.Version("1.0.0")

    def get_default_builder_config(self) -> Any:
        # TFDS stores it in the data folder as the config that `tfds.load` uses by default.
        return getattr(self, "_builder_config", None) or super().get_default_builder_config()

    def _info(self) -> tfds.core.DatasetInfo:
        with self._opened() as opened:
            arguments = dataset_info.info_arguments(opened.first.schema.info, {})
            return tfds.core.DatasetInfo(builder=self, features=opened.features, **arguments)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        limit = download_config.max_examples_per_split
        if limit == 0:
            # As in TFDS, the dataset then has no splits.
            return
        with self._opened() as opened:
            opened.warn_of_loss()
            templates = {split: self._get_filename_template(split) for split in opened.sources}
            shard_config = download_config.get_shard_config()
            if download_config.beam_options or download_config.beam_runner:
                splits, is_step = self._write_by_beam(opened, templates, download_config)
            else:
                progress = tfds.core.utils.tqdm(total=opened.total_steps, unit=" steps", unit_scale=True)
                splits, is_step = [], {}
                with progress as bar:
                    for split, template in templates.items():
                        info, moved = opened.write(split, template, bar, limit=limit, shard_config=shard_config)
                        splits.append(info)
                        is_step[split] = moved.last_rows.is_step
        self.info.metadata.update(to_metadata(is_step))
        self.info.set_splits(tfds.core.SplitDict(splits))

    def _write_by_beam(
        self, opened: OpenedSplits, templates: Mapping[str, Any], download_config: Any
    ) -> tuple[list[tfds.core.SplitInfo], dict[str, np.ndarray]]:
        """Writes the splits with Beam.

        Returns:
          The `SplitInfo` of each split, and for each split whether the last row of each episode is a step, bool
          (episodes,).
        """
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions

        options = download_config.beam_options or PipelineOptions()
        # TFDS disables the type check too, because it rejects the types of TFDS's own Beam writer.
        options.view_as(TypeOptions).pipeline_type_check = False
        ranges, is_step = {}, {}
        for split, sources in opened.sources.items():
            for source in sources:
                if not isinstance(source, KabukiSource):
                    raise InvalidArgumentError(
                        f"{source.label}: a Beam build reads only Kabuki files; use `convert` first"
                    )
            files = [source for source in sources if isinstance(source, KabukiSource)]
            limit = download_config.max_examples_per_split
            ranges[split] = beam_writer.ranges(files, limit, self.builder_config.encode, opened.schema)
            is_step[split] = joined([each.last_rows or decide_last_rows(each) for each in files]).is_step[:limit]
        splits = beam_writer.write_splits(
            beam.Pipeline(runner=download_config.beam_runner, options=options),
            ranges,
            templates,
            self.info.features,
            self.info.file_format,
            download_config.get_shard_config(),
        )
        opened.fingerprints.check()
        return splits, is_step

    def _opened(self) -> Any:
        config = self.builder_config
        if not getattr(config, "path", None):
            raise InvalidArgumentError(
                """no file to build is given: pass --config '{"name": "hopper", "path": "/data/hopper.hdf5"}'; """
                "path is a Kabuki file, a list of files, or a mapping from split to file"
            )
        return open_splits(config.path, config.encode)
