"""RLDS datasets for the tests, written by TFDS.

A `Recipe` contains the features of a dataset and the values of all episodes of all splits. Each function of this
module returns one recipe, always with the same values. `write` writes a recipe with TFDS and returns the folder of the
dataset. `tests.expected.read` returns the values that TFDS decodes from this folder. TFDS cannot read some datasets
that it writes. Tests compare these with the values of the recipe.

TFDS cannot write these kinds of fields and splits, so they are missing here:

* bfloat16 with no encoding, also in a Sequence ("does not support type");
* complex numbers;
* a Tensor with an unknown dimension and no encoding, if its size differs
  between two steps of an episode ("must have the same shape"); the same
  for an Audio field, whose encodings TFDS cannot write at all within steps;
* an optional field of steps that is missing from some;
* a split without episodes, by a dataset builder ("No examples were yielded"):
  `empty_split` is written by the SequentialWriter, which can.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets import features as tff

Episode = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The features and values of a dataset.

    Attributes:
      name: name of the dataset and of the function that returns the recipe.
      features: features of an episode; `features["steps"]` is a `tfds.features.Dataset`.
      splits: maps each split to its episodes. An episode is a dict of its
        metadata, and under "steps" a list of steps, each a nested dict.
      shards: number of files of a split.
      file_format: "tfrecord" or "array_record".
      config: name of the dataset's config, if it has one.
      in_order: write with TFDS's SequentialWriter. It keeps the order of the episodes, can write empty splits, and
        leaves the number of shards out of file names ("-00000" without "-of-00003"). A builder shuffles the episodes.
    """

    name: str
    features: tff.FeaturesDict
    splits: dict[str, list[Episode]]
    shards: int = 1
    file_format: str = "tfrecord"
    config: str | None = None
    in_order: bool = False


def write(recipe: Recipe, data_dir: Path) -> Path:
    """Writes the dataset with TFDS and returns its folder, `…/<name>/1.0.0`."""
    tfds.disable_progress_bar()
    if recipe.in_order:
        return _write_in_order(recipe, data_dir)
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name=recipe.name,
        config=recipe.config,
        version="1.0.0",
        features=recipe.features,
        split_datasets={split: list(enumerate(episodes)) for split, episodes in recipe.splits.items()},
        description=f"The test dataset {recipe.name}.",
        citation=f"@misc{{{recipe.name}}}",
        homepage="https://example.org/rlds",
        data_dir=data_dir,
        file_format=recipe.file_format,
        download_config=tfds.download.DownloadConfig(num_shards=recipe.shards),
    )
    return Path(builder.data_dir)


def _write_in_order(recipe: Recipe, data_dir: Path) -> Path:
    folder = data_dir / recipe.name / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=recipe.name,
        version=tfds.core.Version("1.0.0"),
        data_dir=str(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"The test dataset {recipe.name}.",
        features=recipe.features,
    )
    info.set_file_format(recipe.file_format)
    longest = max(len(episodes) for episodes in recipe.splits.values())
    writer = tfds.core.SequentialWriter(info, -(-longest // recipe.shards))
    writer.initialize_splits(list(recipe.splits))
    for split, episodes in recipe.splits.items():
        for episode in episodes:  # It fills up a shard, and begins one, between two calls.
            writer.add_examples({split: [episode]})
    writer.close_all()
    return folder


# Fields: a feature and a function that draws its values.


class Field(NamedTuple):
    """A field of a table. `draw()` returns its value in the next step or episode."""

    feature: tff.FeatureConnector
    draw: Callable[[], Any]


Table = Mapping[str, "Field | Table"]


def _features(table: Table) -> dict[str, Any]:
    return {name: field.feature if isinstance(field, Field) else _features(field) for name, field in table.items()}


def _row(table: Table) -> dict[str, Any]:
    return {name: field.draw() if isinstance(field, Field) else _row(field) for name, field in table.items()}


def _in_turn(values: Iterable[Any]) -> Callable[[], Any]:
    """Returns a function that cycles through the values."""
    turn = itertools.cycle(values)
    return lambda: next(turn)


def _flags(length: int, terminal: bool) -> Iterator[dict[str, bool]]:
    for t in range(length):
        last = t == length - 1
        yield {"is_first": t == 0, "is_last": last, "is_terminal": last and terminal}


def _flag_features() -> dict[str, Any]:
    return {"is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_}


def _episodes_of(lengths: Iterable[int], steps: Table, metadata: Table) -> list[Episode]:
    """Returns episodes with drawn values. Every second episode is terminated."""
    return [
        {
            "steps": [{**flags, **_row(steps)} for flags in _flags(length, terminal=i % 2 == 0)],
            **_row(metadata),
        }
        for i, length in enumerate(lengths)
    ]


def _recipe_of_tables(
    name: str, lengths: Mapping[str, Iterable[int]], steps: Table, metadata: Table, **options: Any
) -> Recipe:
    return Recipe(
        name=name,
        features=tff.FeaturesDict(
            {
                "steps": tff.Dataset({**_flag_features(), **_features(steps)}),
                **_features(metadata),
            }
        ),
        splits={split: _episodes_of(n, steps, metadata) for split, n in lengths.items()},
        **options,
    )


# Typical datasets: the fields of the RLDS convention.


def plain() -> Recipe:
    """Float observations and actions, episodes of 1 to 40 steps, 3 shards per split."""
    return _standard("plain", shards=3)


def array_record() -> Recipe:
    """`plain` in ArrayRecord files."""
    return _standard("array_record", shards=3, file_format="array_record")


def with_config() -> Recipe:
    """`plain` as the config "medium" of a dataset: `…/with_config/medium/1.0.0`."""
    return _standard("with_config", config="medium")


def in_order() -> Recipe:
    """`plain` written by the SequentialWriter, as EnvLogger does: 3 and 1 shards, named "-00000" and so on."""
    return _standard("in_order", shards=3, in_order=True)


def empty_split() -> Recipe:
    """`plain` with a split "nothing" that has no episode and no file."""
    recipe = _standard("empty_split", in_order=True)
    return dataclasses.replace(recipe, splits={**recipe.splits, "nothing": []})


def no_discount() -> Recipe:
    """`plain` without the field "discount"."""
    return _standard("no_discount", without=["discount"])


def no_reward() -> Recipe:
    """`plain` without the field "reward"."""
    return _standard("no_reward", without=["reward"])


def no_metadata() -> Recipe:
    """`plain` without episode fields."""
    return _standard("no_metadata", without=["episode_id", "agent"])


def one_step() -> Recipe:
    """Episodes of one step each, with both is_first and is_last."""
    return _standard("one_step", lengths={"train": [1] * 5, "test": [1]})


def no_steps() -> Recipe:
    """Episodes of which some are empty, including the first and the last."""
    return _standard("no_steps", lengths={"train": [0, 3, 0, 0, 2, 0]}, in_order=True)


def _standard(
    name: str,
    *,
    lengths: Mapping[str, list[int]] | None = None,
    without: Iterable[str] = (),
    **options: Any,
) -> Recipe:
    """Returns the recipe `plain`, or a variant of it with another name."""
    rng = np.random.default_rng(20)
    step = {
        "observation": {
            "position": tff.Tensor(shape=(3,), dtype=np.float32),
            "velocity": tff.Tensor(shape=(2, 2), dtype=np.float32),
        },
        "action": tff.Tensor(shape=(2,), dtype=np.float32),
        "reward": np.float32,
        "discount": np.float32,
        **_flag_features(),
    }
    metadata = {"episode_id": np.int64, "agent": tff.Text()}
    if lengths is None:
        lengths = {"train": [12, 1, 40, 2, 7, 1, 25, 3, 18, 30], "test": [5, 1, 9, 2]}

    def episode(i: int, length: int) -> Episode:
        terminal = i % 3 != 1  # Every third episode was cut short.
        steps = []
        for flags in _flags(length, terminal):
            steps.append(
                {
                    "observation": {
                        "position": rng.standard_normal(3).astype(np.float32),
                        "velocity": rng.standard_normal((2, 2)).astype(np.float32),
                    },
                    "action": rng.uniform(-1, 1, 2).astype(np.float32),
                    "reward": np.float32(rng.standard_normal()),
                    "discount": np.float32(1),
                    **flags,
                }
            )
        if terminal and length > 1:
            steps[-2]["discount"] = np.float32(0)
        if steps:  # What follows the last observation is padding.
            steps[-1] |= {
                "action": np.zeros(2, np.float32),
                "reward": np.float32(0),
                "discount": np.float32(0),
            }
        episode = {"steps": steps, "episode_id": 100 + i, "agent": f"agent {i % 2}"}
        for field in without:
            episode.pop(field, None)
            for row in steps:
                row.pop(field, None)
        return episode

    return Recipe(
        name=name,
        features=tff.FeaturesDict(
            {
                "steps": tff.Dataset({k: v for k, v in step.items() if k not in without}),
                **{k: v for k, v in metadata.items() if k not in without},
            }
        ),
        splits={split: [episode(i, length) for i, length in enumerate(n)] for split, n in lengths.items()},
        **options,
    )


def oxe_style() -> Recipe:
    """A dataset like those of the Open X-Embodiment builder template. It breaks rules 3 to 5 of the format.

    `is_terminal` is true at every last step, every discount is 1.0, and the last step has a real action and reward
    instead of padding.
    """
    rng = np.random.default_rng(21)

    def episode(i: int, length: int) -> Episode:
        steps = [
            {
                "observation": {
                    "image": _picture(rng, (16, 20, 3)),
                    "state": rng.standard_normal(10).astype(np.float32),
                },
                "action": rng.uniform(-1, 1, 10).astype(np.float32),
                "discount": 1.0,
                "reward": float(flags["is_last"]),
                "language_instruction": f"put the spoon on plate {i}",
                **flags,
            }
            for flags in _flags(length, terminal=True)
        ]
        return {
            "steps": steps,
            "episode_metadata": {"file_path": f"/data/raw/episode_{i}.npy"},
        }

    return Recipe(
        name="oxe_style",
        features=tff.FeaturesDict(
            {
                "steps": tff.Dataset(
                    {
                        "observation": {
                            "image": tff.Image(shape=(16, 20, 3), encoding_format="jpeg"),
                            "state": tff.Tensor(shape=(10,), dtype=np.float32),
                        },
                        "action": tff.Tensor(shape=(10,), dtype=np.float32),
                        "discount": tff.Scalar(dtype=np.float32),
                        "reward": tff.Scalar(dtype=np.float32),
                        "language_instruction": tff.Text(),
                        **_flag_features(),
                    }
                ),
                "episode_metadata": {"file_path": tff.Text()},
            }
        ),
        splits={
            "train": [episode(i, length) for i, length in enumerate([5, 8, 3, 6])],
            "val": [episode(i, length) for i, length in enumerate([4, 2])],
        },
        shards=2,
    )


# Every kind of field.

ENCODINGS = ("none", "bytes", "zlib")
DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        np.bool_,
        *(np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, ml_dtypes.bfloat16, np.float32, np.float64),
    )
}


def every_kind() -> Recipe:
    """Fields of every kind that TFDS can both write and read."""
    rng = np.random.default_rng(22)
    steps: Table = {
        "observation": {
            "scalar": _each_dtype(rng, ()),
            "tensor": _each_dtype(rng, (2, 3)),
            "text": _text_fields(),
            "image": _image_fields(rng),
            "ragged": _ragged_fields(rng),
            "sequence": _sequence_fields(rng),
            "a": {"b": {"c": _tensor(rng, "float32", (2,))}},  # Three deep.
            "empty": {  # With no encoding: `zero_size`.
                encoding: Field(
                    tff.Tensor(shape=(0, 3), dtype=np.float32, encoding=encoding),
                    lambda: np.zeros((0, 3), np.float32),
                )
                for encoding in ("bytes", "zlib")
            },
        },
        "action": {
            "gripper": Field(tff.ClassLabel(names=["open", "close", "stay put"]), _in_turn([0, 2, 1])),
            "arm": _tensor(rng, "float64", (4,), "zlib"),
        },
        "reward": _tensor(rng, "float64", (), "bytes"),
        "discount": Field(tff.Scalar(dtype=np.float32), lambda: 1.0),
        # Additional step fields. One has an unusual name that HDF5 and TFDS allow.
        "language_embedding": _tensor(rng, "bfloat16", (4,), "bytes"),
        "teacher q-values (v2.0)": _tensor(rng, "float32", (3,)),
    }
    metadata: Table = {
        "episode_id": Field(tff.Scalar(dtype=np.int64), _in_turn([7, 2**53 + 1, -1])),
        "seed": Field(tff.Scalar(dtype=np.uint64), _in_turn([2**64 - 1, 2**63, 1])),
        "success": Field(tff.Scalar(dtype=np.bool_), _in_turn([True, False])),
        "task": Field(tff.ClassLabel(names=["reach", "grasp"]), _in_turn([1, 0])),
        "agent": Field(tff.Text(), _in_turn(TEXTS)),
        "episode_metadata": {
            "file_path": Field(tff.Text(), _in_turn(["/raw/a.npy", "/raw/ä.npy"])),
            "camera": {
                "pose": _tensor(rng, "float64", (2, 2), "bytes"),
                "picture": Field(
                    tff.Image(shape=(None, None, 3), encoding_format="png"),
                    _in_turn([_picture(rng, (3 + i, 4, 3)) for i in range(3)]),
                ),
            },
        },
        "returns": Field(tff.Sequence(np.float32), _in_turn([[1.5, -2.0], [], [0.25]])),
        "tags": Field(tff.Sequence(tff.Text()), _in_turn([["a", ""], [], ["ü", b"\x00\xff"]])),
        "ranks": Field(tff.Sequence(tff.Sequence(np.int32)), _in_turn([[[1, 2], [], [3]], [], [[4]]])),
        "goal": _ragged(rng, "float64", (None, 2), "none"),
        "map": _ragged(rng, "uint8", (None, None), "zlib"),
        "corners": Field(tff.Sequence(np.int16, length=4), _in_turn([[1, 2, 3, 4], [5, 6, 7, 8]])),
    }
    lengths = {"train": [4, 1, 6, 3], "test": [2, 5]}
    return _recipe_of_tables("every_kind", lengths, steps, metadata, shards=2)


TEXTS = (
    "plain",
    "",
    b"inside\x00and behind\x00\x00",
    b"not \xff\xfe UTF-8 \xc3",
    "größer, 机器人, 🤖",
    b"\x00",
    " with spaces \n",
)


def _text_fields() -> Table:
    rows = itertools.cycle([np.array(TEXTS[i : i + 3], object) for i in range(4)])
    return {
        "text": Field(tff.Text(), _in_turn(TEXTS)),
        "scalar": Field(tff.Tensor(shape=(), dtype=np.str_), _in_turn(TEXTS[::-1])),
        "tensor": Field(tff.Tensor(shape=(3,), dtype=np.str_), lambda: next(rows)),
        "matrix": Field(
            tff.Tensor(shape=(2, 1), dtype=np.str_),
            lambda: np.array([["up"], [b"\x00down"]], object),
        ),
    }


def _image_fields(rng: np.random.Generator) -> Table:
    def image(channels: int, file_format: str, dtype: Any = np.uint8) -> Table:
        options = {"encoding_format": file_format, "dtype": dtype}
        sizes = [(5, 4), (3, 6), (1, 1), (7, 2)]
        return {
            "fixed": Field(
                tff.Image(shape=(6, 5, channels), **options),
                _in_turn([_picture(rng, (6, 5, channels), dtype) for _ in range(3)]),
            ),
            "any_size": Field(
                tff.Image(shape=(None, None, channels), **options),
                _in_turn([_picture(rng, (*size, channels), dtype) for size in sizes]),
            ),
        }

    return {
        "png_1": image(1, "png"),
        "png_3": image(3, "png"),
        "png_4": image(4, "png"),
        "jpeg_1": image(1, "jpeg"),
        "jpeg_3": image(3, "jpeg"),
        "png_uint16_1": image(1, "png", np.uint16),
        "png_uint16_3": image(3, "png", np.uint16),
        "depth": image(1, "png", np.float32),
        "one_size_unknown": Field(
            tff.Image(shape=(None, 4, 3), encoding_format="png"),
            _in_turn([_picture(rng, (height, 4, 3)) for height in (2, 5)]),
        ),
        # The feature states no encoding: images are JPEG in one step and PNG in the next.
        "either": Field(
            tff.Image(shape=(6, 5, 3)),
            _in_turn([_file(_picture(rng, (6, 5, 3)), form) for form in ("jpeg", "png")]),
        ),
    }


def _ragged_fields(rng: np.random.Generator) -> Table:
    """Tensors with unknown dimensions. In some steps a dimension is 0."""
    table: dict[str, Table] = {}
    for encoding in ("bytes", "zlib"):
        table[encoding] = {
            "vector": _ragged(rng, "int16", (None,), encoding),
            "rows": _ragged(rng, "float32", (None, 3), encoding),
            "columns": _ragged(rng, "float64", (2, None), encoding),
            "matrix": _ragged(rng, "bfloat16", (None, None), encoding),
            "boxes": _ragged(rng, "uint64", (None, 2, None), encoding),
            "flags": _ragged(rng, "bool", (None,), encoding),
        }
    return table


def _sequence_fields(rng: np.random.Generator) -> Table:
    def numbers(dtype: str) -> Callable[[], Any]:
        values = _values(rng, DTYPES[dtype])
        return _in_turn([values[:2], values[:0], values[2:3], values])

    box = {"low": np.array([0.5, 1], np.float32), "high": np.array([2, 3], np.float32), "name": {"text": "wall"}}
    return {
        **{
            dtype: Field(tff.Sequence(tff.Scalar(dtype=DTYPES[dtype])), numbers(dtype))
            for dtype in DTYPES
            if dtype != "bfloat16"  # TFDS cannot write it.
        },
        "encoded": Field(
            tff.Sequence(tff.Tensor(shape=(2,), dtype=np.float64, encoding="zlib")),
            _in_turn([rng.standard_normal((n, 2)) for n in (2, 0, 1)]),
        ),
        "vectors": Field(
            tff.Sequence(tff.Tensor(shape=(2, 2), dtype=np.float32)),
            _in_turn([rng.standard_normal((n, 2, 2)).astype(np.float32) for n in (1, 0, 3)]),
        ),
        "matrices": Field(  # Of one shape within a step: TFDS stacks them.
            tff.Sequence(tff.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes")),
            _in_turn([rng.standard_normal((n, 2, n + 1)).astype(np.float32) for n in (1, 3)]),
        ),
        "texts": Field(tff.Sequence(tff.Text()), _in_turn([TEXTS[:2], (), TEXTS[2:5], TEXTS[5:]])),
        "labels": Field(tff.Sequence(tff.ClassLabel(num_classes=3)), _in_turn([[0, 2], [], [1]])),
        "dicts": Field(
            tff.Sequence(
                {
                    "low": tff.Tensor(shape=(2,), dtype=np.float32),
                    "high": tff.Tensor(shape=(2,), dtype=np.float32),
                    "name": {"text": tff.Text()},
                }
            ),
            _in_turn([[box, box], [], [box]]),
        ),
        "sequences": Field(tff.Sequence(tff.Sequence(np.int32)), _in_turn([[[1, 2], [], [3]], [], [[]], [[4]]])),
        "sequences_of_text": Field(
            tff.Sequence(tff.Sequence(tff.Text())), _in_turn([[["a", b"\x00"], [""]], [[]], []])
        ),
        "sequences_of_sequences": Field(
            tff.Sequence(tff.Sequence(tff.Sequence(np.float32))),
            _in_turn([[[[1.5, 2], []], []], [], [[[3]]]]),
        ),
        "sequences_in_dicts": Field(
            tff.Sequence({"tokens": tff.Sequence(np.int64)}),
            _in_turn([[{"tokens": [1, 2]}, {"tokens": []}], [], [{"tokens": [3]}]]),
        ),
        "pairs_of_sequences": Field(
            tff.Sequence(tff.Sequence(np.int32), length=2),
            _in_turn([[[1, 2], [3]], [[], [4]], [[], []]]),
        ),
        "sequences_of_pairs": Field(
            tff.Sequence(tff.Sequence(np.int32, length=2)),
            _in_turn([[[1, 2], [3, 4]], [], [[5, 6]]]),
        ),
        "images": Field(  # All of a size within a step: `mixed_images` has others.
            tff.Sequence(tff.Image(shape=(None, None, 3), encoding_format="png")),
            _in_turn([[_picture(rng, (h, 3, 3)) for _ in range(n)] for n, h in ((2, 4), (1, 2), (3, 5))]),
        ),
        "images_or_none": Field(
            tff.Sequence(tff.Image(shape=(4, 3, 3), encoding_format="jpeg")),
            _in_turn([[_picture(rng, (4, 3, 3)) for _ in range(n)] for n in (2, 0, 1)]),
        ),
        "box": Field(tff.BBoxFeature(), lambda: tff.BBox(0.0, 0.25, 0.5, 1.0)),
        "boxes": Field(tff.Sequence(tff.BBoxFeature()), _in_turn([[tff.BBox(0.0, 0.25, 0.5, 1.0)] * 2, []])),
    }


def uncovered() -> Recipe:
    """Kinds of fields that TFDS can write and read and that `every_kind` does not have."""
    rng = np.random.default_rng(23)
    steps: Table = {
        **_standard_fields(rng),
        "audio": Field(  # Of one length: with None and steps of other lengths TFDS cannot write it.
            tff.Audio(shape=(8,), dtype=np.int64, sample_rate=16_000),
            _in_turn(rng.integers(-(2**15), 2**15, (5, 8))),
        ),
        "video": Field(
            tff.Video(shape=(None, 4, 3, 3)),
            _in_turn([_picture(rng, (n, 4, 3, 3)) for n in (2, 1, 3)]),
        ),
        "segments": Field(
            tff.LabeledImage(labels=["floor", "wall", "cup"], shape=(4, 5, 1)),
            _in_turn([_picture(rng, (4, 5, 1)) % 3 for _ in range(3)]),
        ),
        "segments_of_any_size": Field(
            tff.LabeledImage(labels=5), _in_turn([_picture(rng, (n, 2, 1)) % 5 for n in (1, 3)])
        ),
        "translation": Field(
            tff.Translation(languages=["de", "en"]),
            _in_turn([{"de": "größer", "en": "larger"}, {"de": "", "en": "\0"}]),
        ),
        "translations": Field(
            tff.TranslationVariableLanguages(languages=["de", "en"]),
            _in_turn([{"en": ["one", "two"], "de": "eins"}, {"en": "three"}]),
        ),
        "dataset": Field(
            tff.Dataset({"x": np.int32, "y": tff.Tensor(shape=(2,), dtype=np.float32)}),
            _in_turn([[{"x": i, "y": np.array([i, 0.5], np.float32)} for i in range(n)] for n in (2, 1, 3)]),
        ),
        "dataset_of_lists_of_images": Field(
            tff.Dataset({"camera": tff.Sequence(tff.Image(shape=(3, 4, 1), encoding_format="png"))}),
            _in_turn([[{"camera": [_picture(rng, (3, 4, 1))] * n}, {"camera": []}] for n in (2, 1)]),
        ),
        "dataset_of_audio": Field(
            tff.Dataset(tff.Audio(shape=(4,))), _in_turn([list(rng.integers(-9, 9, (n, 4))) for n in (2, 1)])
        ),
        "lists_of_lists_of_dicts": Field(
            tff.Sequence(tff.Sequence({"id": np.int32, "name": tff.Text()})),
            _in_turn([[[{"id": 1, "name": "a"}, {"id": 2, "name": ""}], []], [], [[{"id": 3, "name": "ä"}]]]),
        ),
        "lists_of_images": Field(  # Some steps have none.
            tff.Sequence(tff.Sequence(tff.Image(shape=(3, 4, 1), encoding_format="png"))),
            _in_turn([[[_picture(rng, (3, 4, 1))] * n, []] for n in (2, 0)] + [[]]),
        ),
        "optional": Field(tff.Tensor(shape=(), dtype=np.int32, optional=True), _in_turn([1, 2])),
        "bounded": Field(
            tff.Tensor(shape=(2,), dtype=np.float32, minimum=-1, maximum=1),
            _in_turn([np.array([-1, 1], np.float32), np.array([0.5, 0], np.float32)]),
        ),
    }
    metadata: Table = {
        "audio": Field(tff.Audio(), _in_turn([[1, 2, 3], [], [4]])),
        "video": Field(tff.Video(shape=(2, 4, 3, 3)), _in_turn([_picture(rng, (2, 4, 3, 3)) for _ in range(2)])),
        "matrices": Field(
            tff.Sequence(tff.Tensor(shape=(None, 2), dtype=np.float32, encoding="zlib")),
            _in_turn([[], [np.ones((3, 2), np.float32)] * 2]),
        ),
        "names": Field(
            tff.Tensor(shape=(None,), dtype=np.str_),
            _in_turn([np.array(["a", "b"], object), np.array([], object)]),
        ),
        "optional": Field(
            # Missing from some episodes. TFDS then returns the smallest int32.
            # (TFDS can write but not read missing text: "required but could not be found".)
            tff.Tensor(shape=(), dtype=np.int32, optional=True),
            _in_turn([1, None, 3]),
        ),
    }
    return _recipe_of_tables("uncovered", {"train": [3, 1, 4]}, steps, metadata)


# Datasets that TFDS can write but not read. Episodes are in order, and the expected values are
# `tests.expected.generated`.


def zero_size() -> Recipe:
    """Steps with tensors of shape (0,) and (0, 3). Reading them with TFDS crashes the process (SIGFPE)."""
    rng = np.random.default_rng(24)
    return _recipe_of_tables(
        "zero_size",
        {"train": [3, 1, 4]},
        {
            **_standard_fields(rng),
            "nothing": {
                "vector": _tensor(rng, "float32", (0,)),
                "matrix": _tensor(rng, "int64", (0, 3)),
                "inner": _tensor(rng, "float64", (2, 0)),
                "text": Field(tff.Tensor(shape=(0,), dtype=np.str_), lambda: np.zeros((0,), object)),
            },
        },
        {"nothing": _tensor(rng, "float32", (0,))},
        in_order=True,
    )


def encoded_uint32() -> Recipe:
    """uint32 with encoding bytes or zlib. TFDS raises TypeError on reading, "uint32 not in list of allowed values"."""
    rng = np.random.default_rng(25)
    return _recipe_of_tables(
        "encoded_uint32",
        {"train": [3, 1, 4]},
        {
            **_standard_fields(rng),
            **{
                encoding: {
                    "scalar": _tensor(rng, "uint32", (), encoding),
                    "tensor": _tensor(rng, "uint32", (2, 3), encoding),
                    "ragged": _ragged(rng, "uint32", (None, 2), encoding),
                    "matrix": _ragged(rng, "uint32", (None, None), encoding),
                }
                for encoding in ("bytes", "zlib")
            },
        },
        {"seed": _tensor(rng, "uint32", (2,), "bytes")},
        in_order=True,
    )


def static_sequence() -> Recipe:
    """Sequences of static length in steps, of arrays without unknown dimensions.

    Reading with TFDS raises TypeError, "…are valid indices, got 'ragged_flat_values'". Episode fields that are
    Sequences of Sequences raise the same error if one Sequence has static length.
    """
    rng = np.random.default_rng(26)
    texts = np.array(TEXTS[:6], object).reshape(3, 2)
    return _recipe_of_tables(
        "static_sequence",
        {"train": [3, 1, 4]},
        {
            **_standard_fields(rng),
            "scalars": Field(
                tff.Sequence(np.int32, length=2),
                _in_turn(np.arange(10, dtype=np.int32).reshape(5, 2)),
            ),
            "vectors": Field(
                tff.Sequence(tff.Tensor(shape=(3,), dtype=np.float32), length=2),
                _in_turn(rng.standard_normal((4, 2, 3)).astype(np.float32)),
            ),
            "encoded": Field(
                tff.Sequence(tff.Tensor(shape=(), dtype=np.float64, encoding="bytes"), length=3),
                _in_turn(rng.standard_normal((4, 3))),
            ),
            "texts": Field(tff.Sequence(tff.Text(), length=2), _in_turn(texts)),
            "video": Field(
                tff.Video(shape=(2, 4, 3, 3)),
                _in_turn([_picture(rng, (2, 4, 3, 3)) for _ in range(3)]),
            ),
        },
        {
            "pairs_of_sequences": Field(
                tff.Sequence(tff.Sequence(np.int32), length=2),
                _in_turn([[[1, 2], [3]], [[], [4]]]),
            ),
            "sequences_of_pairs": Field(
                tff.Sequence(tff.Sequence(np.int32, length=2)),
                _in_turn([[[1, 2], [3, 4]], [[5, 6]]]),
            ),
        },
        in_order=True,
    )


def mixed_images() -> Recipe:
    """A Sequence of images whose sizes differ within a step.

    Reading with TFDS raises InvalidArgumentError, "Incompatible shapes during merge".
    """
    rng = np.random.default_rng(27)
    return _recipe_of_tables(
        "mixed_images",
        {"train": [3, 1, 4]},
        {
            **_standard_fields(rng),
            "images": Field(
                tff.Sequence(tff.Image(shape=(None, None, 3), encoding_format="png")),
                _in_turn(
                    [
                        [_picture(rng, (*size, 3)) for size in sizes]
                        for sizes in ([(4, 5), (3, 3)], [(2, 2)], [(1, 6), (6, 1), (2, 3)])
                    ]
                ),
            ),
        },
        {},
        in_order=True,
    )


def image_lists() -> Recipe:
    """Step and episode fields with lists of images of unknown size, and videos. Some are empty."""
    rng = np.random.default_rng(31)
    image, depth = tff.Image(shape=(None, None, 3)), tff.Image(shape=(None, None, 1), dtype=np.float32)
    fields: Table = {
        "views": Field(
            tff.Sequence(image), _in_turn([[], [_picture(rng, (4, 5, 3))] * 2, [], [_picture(rng, (2, 3, 3))]])
        ),
        "depths": Field(tff.Sequence(depth), _in_turn([[_picture(rng, (3, 4, 1), np.float32)], []])),
        "always_empty": Field(tff.Sequence(image), _in_turn([[]])),
        "frames": Field(
            tff.Video(shape=(None, None, None, 3)),
            _in_turn([_picture(rng, (2, 4, 3, 3)), np.zeros((0, 4, 3, 3), np.uint8)]),
        ),
        "classes": Field(
            tff.Sequence(tff.LabeledImage(labels=3, shape=(None, None, 1))),
            _in_turn([[], [_picture(rng, (3, 2, 1)) % 3]]),
        ),
    }
    return _recipe_of_tables("image_lists", {"train": [3, 1, 4]}, {**_standard_fields(rng), **fields}, fields)


def unencoded_ragged() -> Recipe:
    """Tensors with an unknown dimension and no encoding. The size is constant within an episode.

    TFDS cannot write them if the size varies. Reading with TFDS raises NotImplementedError, "Multiple unknown dimension
    not supported".
    """
    rng = np.random.default_rng(28)
    lengths = [3, 1, 4]
    sizes = [size for size, n in zip((2, 5, 0), lengths, strict=True) for _ in range(n)]
    return _recipe_of_tables(
        "unencoded_ragged",
        {"train": lengths},
        {
            **_standard_fields(rng),
            "rows": Field(
                tff.Tensor(shape=(None, 2), dtype=np.float32),
                _in_turn([rng.standard_normal((n, 2)).astype(np.float32) for n in sizes]),
            ),
            "texts": Field(
                tff.Tensor(shape=(None,), dtype=np.str_),
                _in_turn([np.array([f"word {i}" for i in range(n)], object) for n in sizes]),
            ),
        },
        {},
        in_order=True,
    )


def _standard_fields(rng: np.random.Generator) -> Table:
    return {
        "observation": _tensor(rng, "float32", (2,)),
        "action": _tensor(rng, "float32", (1,)),
        "reward": Field(tff.Scalar(dtype=np.float32), _in_turn([0.5, -1.0])),
        "discount": Field(tff.Scalar(dtype=np.float32), lambda: 1.0),
    }


def record_catch(folder: Path, episodes: int) -> Path:
    """Records episodes of Catch, 10 steps each, with EnvLogger's RLDS backend into `folder`. Returns the folder.

    Reward and discount are float64, as in dm_env, with an encoding that keeps this dtype. Every step has the field
    "lucky", and every episode the field "number". Requires EnvLogger 1.2.
    """
    import envlogger
    from envlogger.backends import tfds_backend_writer
    from envlogger.testing import catch_env

    rng = np.random.default_rng(29)
    float64 = tff.Tensor(shape=(), dtype=np.float64, encoding="bytes")
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="catch",
        description="Catch, played at random.",
        overall_description="Recorded for a test.",
        homepage="https://example.org/catch",
        observation_info=tff.Tensor(shape=(10, 5), dtype=np.float32),
        action_info=tff.Scalar(dtype=np.int64),
        reward_info=float64,
        discount_info=float64,
        step_metadata_info={"lucky": np.bool_},
        episode_metadata_info={"number": np.int64},
    )
    number = itertools.count()

    def metadata_of_step(timestep: Any, action: Any, environment: Any) -> dict[str, Any]:
        return {"lucky": bool(timestep.reward and timestep.reward > 0)}

    def metadata_of_episode(timestep: Any, action: Any, environment: Any) -> Any:
        return {"number": np.int64(next(number))} if timestep.last() else None

    folder.mkdir(parents=True, exist_ok=True)
    with envlogger.EnvLogger(
        catch_env.Catch(seed=29),
        step_fn=metadata_of_step,
        episode_fn=metadata_of_episode,
        backend=tfds_backend_writer.TFDSBackendWriter,
        data_directory=str(folder),
        ds_config=config,
        max_episodes_per_file=4,
        version="1.0.0",
        # store_ds_metadata would fail: "ndarray is not JSON serializable" (bounds in the specs).
    ) as environment:
        for _ in range(episodes):
            timestep = environment.reset()
            while not timestep.last():
                timestep = environment.step(rng.integers(3))
    return folder


def _each_dtype(rng: np.random.Generator, shape: tuple[int, ...]) -> Table:
    """Returns one group per encoding, with one field per dtype."""
    return {
        encoding: {
            dtype: _tensor(rng, dtype, shape, encoding)
            for dtype in DTYPES
            # TFDS cannot write the first one and cannot read the second one: `encoded_uint32`.
            if not (dtype == "bfloat16" and encoding == "none") and not (dtype == "uint32" and encoding != "none")
        }
        for encoding in ENCODINGS
    }


def _tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], encoding: str = "none") -> Field:
    values = itertools.cycle(_values(rng, DTYPES[dtype]))
    size = int(np.prod(shape))

    def draw() -> np.ndarray:
        flat = np.array(list(itertools.islice(values, size)), DTYPES[dtype])
        return flat.reshape(shape)

    return Field(tff.Tensor(shape=shape, dtype=_tfds_dtype(dtype), encoding=encoding), draw)


def _ragged(rng: np.random.Generator, dtype: str, shape: tuple[int | None, ...], encoding: str) -> Field:
    sizes = itertools.cycle([2, 0, 1, 3, 5])
    values = itertools.cycle(_values(rng, DTYPES[dtype]))

    def draw() -> np.ndarray:
        known = [next(sizes) if n is None else n for n in shape]
        flat = np.array(list(itertools.islice(values, int(np.prod(known)))), DTYPES[dtype])
        return flat.reshape(known)

    return Field(tff.Tensor(shape=shape, dtype=_tfds_dtype(dtype), encoding=encoding), draw)


def _tfds_dtype(dtype: str) -> Any:
    if dtype == "bfloat16":  # TFDS knows it by TensorFlow's name only.
        import tensorflow as tf

        return tf.bfloat16
    return DTYPES[dtype]


def _values(rng: np.random.Generator, dtype: np.dtype) -> np.ndarray:
    """Returns values that a wrong conversion would change, and ordinary values. The shape is (11,) or smaller."""
    if dtype == np.bool_:
        return np.array([True, False, False, True, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        extremes = np.array([info.max, info.min, info.max - 1, info.min + 1, 0, 1], dtype)
        others = rng.integers(info.min, info.max, 5, dtype, endpoint=True)
        return np.concatenate([extremes, others])
    limits_of = ml_dtypes.finfo(dtype)
    with np.errstate(over="ignore"):
        special = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(dtype)
    limits = np.array([limits_of.smallest_subnormal, -limits_of.tiny, limits_of.max, limits_of.eps], dtype)
    return np.concatenate([special, limits, rng.standard_normal(3).astype(dtype)])


def _picture(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    if dtype == np.float32:
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _file(picture: np.ndarray, form: str) -> bytes:
    """Returns the bytes of an image file of the picture in the format "jpeg" or "png"."""
    import tensorflow as tf

    encode = tf.io.encode_jpeg if form == "jpeg" else tf.io.encode_png
    return encode(picture).numpy()


READ_BY_TFDS = (
    *("plain", "array_record", "with_config", "in_order", "empty_split"),
    *("no_discount", "no_reward", "no_metadata", "one_step", "no_steps", "oxe_style"),
    *("every_kind", "uncovered", "image_lists"),
)
NOT_READ_BY_TFDS = ("zero_size", "encoded_uint32", "static_sequence", "mixed_images", "unencoded_ragged")
