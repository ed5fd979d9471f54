"""Makes `tfds_4_4/`: an RLDS dataset written by TFDS 4.4, and what TFDS 4.4 reads from it.

Run with Python 3.8 and nothing of this project:

    pip install tensorflow-datasets==4.4.0 tensorflow==2.8.4 "protobuf<3.20" "numpy<1.24"
    python make_tfds_4_4.py tfds_4_4

Writes the dataset `old_robot/1.0.0` and `old_robot.json`: for each split the
lengths of its episodes, and for each field its dtype and the values of all
steps (or episodes), end to end. Made again, the shards hold the same values in
other bytes: protobuf writes the fields in any order.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

LENGTHS = {"train": [5, 1, 7, 3, 2], "test": [4]}


class OldRobot(tfds.core.GeneratorBasedBuilder):
    """A robot of the time before Open X-Embodiment."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        steps = {
            "observation": {
                "state": tfds.features.Tensor(shape=(3,), dtype=tf.float32),
                "image": tfds.features.Image(shape=(6, 5, 3), encoding_format="png"),
                "depth": tfds.features.Tensor(shape=(2, 2), dtype=tf.float64, encoding="zlib"),
            },
            "action": tfds.features.Tensor(shape=(2,), dtype=tf.float32),
            "reward": tf.float64,  # Stored as float32: tf.train.Example has no double.
            "discount": tfds.features.Tensor(shape=(), dtype=tf.float64, encoding="bytes"),
            "instruction": tfds.features.Text(),
            "gripper": tfds.features.ClassLabel(names=["open", "closed", "in between"]),
            "plan": tfds.features.Sequence(tf.int32),
            "is_first": tf.bool,
            "is_last": tf.bool,
            "is_terminal": tf.bool,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Made to be read by later versions.",
            features=tfds.features.FeaturesDict(
                {
                    "steps": tfds.features.Dataset(steps),
                    "episode_id": tf.int64,
                    "agent": tfds.features.Text(),
                    "task": tfds.features.ClassLabel(names=["reach", "grasp"]),
                    "returns": tfds.features.Tensor(shape=(2,), dtype=tf.float32),
                }
            ),
            homepage="https://example.org/old_robot",
            citation="@misc{old_robot}",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in LENGTHS}

    def _generate_examples(self, split):
        rng = np.random.RandomState(len(split))
        for i, length in enumerate(LENGTHS[split]):
            steps = [
                {
                    "observation": {
                        "state": rng.randn(3).astype(np.float32),
                        "image": rng.randint(0, 256, (6, 5, 3)).astype(np.uint8),
                        "depth": rng.randn(2, 2),
                    },
                    "action": rng.randn(2).astype(np.float32),
                    "reward": rng.randn(),
                    "discount": 0.0 if t >= length - 2 and i % 2 == 0 else 0.99,
                    "instruction": ["pick it up", "", "größer \x00 als"][t % 3],
                    "gripper": t % 3,
                    "plan": list(range(t % 4)),
                    "is_first": t == 0,
                    "is_last": t == length - 1,
                    "is_terminal": t == length - 1 and i % 2 == 0,
                }
                for t in range(length)
            ]
            yield (
                f"episode {i}",
                {
                    "steps": steps,
                    "episode_id": 10 * i,
                    "agent": f"agent {i % 2}",
                    "task": i % 2,
                    "returns": rng.randn(2).astype(np.float32),
                },
            )


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, prefix + name + "/")
        else:
            yield prefix + name, value


def columns(rows):
    result = {}
    for row in rows:
        for path, value in flat(row):
            text = isinstance(value, bytes)
            column = result.setdefault(path, {"dtype": "string" if text else str(value.dtype), "values": []})
            column["values"].append(value.decode() if text else value.tolist())
    return result


def main(folder):
    data_dir = pathlib.Path(tempfile.mkdtemp())
    builder = OldRobot(data_dir=str(data_dir))
    builder.download_and_prepare()
    splits = {}
    for split in LENGTHS:
        episodes = list(tfds.as_numpy(builder.as_dataset(split=split)))
        steps = [list(episode.pop("steps")) for episode in episodes]
        splits[split] = {
            "lengths": [len(rows) for rows in steps],
            "steps": columns(step for rows in steps for step in rows),
            "episodes": columns(episodes),
        }
    shutil.rmtree(str(folder), ignore_errors=True)
    shutil.copytree(str(data_dir / "old_robot"), str(folder / "old_robot"))
    (folder / "old_robot.json").write_text(json.dumps(splits, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
