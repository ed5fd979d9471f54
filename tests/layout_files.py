"""Writes demonstration files in the layouts of other projects, with h5py only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def robomimic(
    path: Path,
    lengths: Mapping[int, int],
    *,
    next_obs: bool = True,
    success: Sequence[int] = (),
    rewards: bool = True,
    masks: Mapping[str, Sequence[int]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes demonstrations `demo_<number>` of the given lengths. Those in `success` end done and rewarded."""
    rng = np.random.default_rng(sum(lengths))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths.values())
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1})
        for name, value in (attributes or {}).items():
            data.attrs[name] = value
        for number, length in lengths.items():
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = f"<mujoco model='{number}'/>"
            seen = rng.normal(size=(length + 1, 3))
            pictures = rng.integers(0, 256, (length + 1, 40, 32, 3), np.uint8)
            demo["obs/eef_pos"], demo["obs/camera/agentview_image"] = seen[:-1], pictures[:-1]
            if next_obs:
                demo["next_obs/eef_pos"], demo["next_obs/camera/agentview_image"] = seen[1:], pictures[1:]
            demo["actions"] = rng.normal(size=(length, 7))
            demo["states"] = rng.normal(size=(length, 5))
            done = np.zeros(length, np.int64)
            done[-1] = number in success
            demo["dones"] = done
            if rewards:
                demo["rewards"] = done.astype(np.float64)
        for key, numbers in (masks or {}).items():
            file[f"mask/{key}"] = np.array([f"demo_{number}".encode() for number in numbers])
    return path


def libero(path: Path, lengths: Mapping[int, int], instruction: str) -> Path:
    """Writes a LIBERO file: the robomimic layout without `next_obs`. All demonstrations end with done."""
    says = {"problem_info": json.dumps({"language_instruction": instruction}), "bddl_file_name": "task.bddl"}
    return robomimic(path, lengths, next_obs=False, success=list(lengths), attributes=says)


def robosuite(path: Path, lengths: Mapping[int, int]) -> Path:
    """Writes a file like robosuite's collection script: states and actions."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["repository_version"] = "Lift", "1.4.0"
        for number, length in lengths.items():
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = "<mujoco/>"
            demo["states"], demo["actions"] = rng.normal(size=(length, 4)), rng.normal(size=(length, 7))
    return path


def aloha(path: Path, length: int, files: Sequence[bytes] = ()) -> Path:
    """Writes one ALOHA episode. `files` are image files, stored as padded JPEG files."""
    rng = np.random.default_rng(length)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"] = rng.normal(size=(length, 14)).astype(np.float32)
        file["observations/qpos"] = rng.normal(size=(length, 14))
        if files:
            file.attrs["compress"] = True
            longest = max(map(len, files))
            padded = np.array([np.frombuffer(one.ljust(longest, b"\0"), np.uint8) for one in files])
            file["observations/images/top"] = padded
            file["compress_len"] = np.array([[len(one) for one in files]], np.float32)
        else:
            file["observations/images/top"] = rng.integers(0, 256, (length, 48, 64, 3), np.uint8)
    return path


def d4rl(path: Path, **arrays: Any) -> Path:
    """Writes a D4RL file with observations of shape (3,), one per row of `terminals`, and the given arrays."""
    count = len(arrays["terminals"])
    rng = np.random.default_rng(count)
    made = {
        "observations": rng.normal(size=(count, 3)).astype(np.float32),
        "actions": rng.normal(size=(count, 2)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, values in {**made, **arrays}.items():
            file[name] = values
    return path


def minari(path: Path, lengths: Sequence[int], files: Sequence[bytes] = ()) -> Path:
    """Writes Minari episodes with the given numbers of actions, without `metadata.json`. `files` are image files."""
    rng = np.random.default_rng(sum(lengths))
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            episode = file.create_group(f"episode_{number}")
            episode.attrs["id"], episode.attrs["total_steps"] = number, length
            episode.attrs["options/goal"] = np.array([1.0, number])
            episode["observations/joints"] = rng.normal(size=(length + 1, 3))
            episode["observations/pair/_index_0"] = np.arange(length + 1)
            if files:
                camera = episode.create_dataset("observations/camera", (length + 1,), h5py.vlen_dtype("u1"))
                for row in range(length + 1):
                    camera[row] = np.frombuffer(files[row % len(files)], np.uint8)
            episode["infos/says"] = np.array(["a", "longer"] * length, h5py.string_dtype())[: length + 1]
            episode["actions"] = rng.normal(size=(length, 2)).astype(np.float32)
            episode["rewards"] = rng.normal(size=length)
            ended = np.arange(length) == length - 1
            episode["terminations"], episode["truncations"] = ended & (number % 2 == 0), ended & (number % 2 == 1)
    return path


def minari_arrow(folder: Path, lengths: Sequence[int], data_format: str = "parquet") -> Path:
    """Writes episodes with the given numbers of actions in Minari's Arrow storage, one folder per episode."""
    import pyarrow as pa
    import pyarrow.dataset

    rng = np.random.default_rng(sum(lengths))
    data = folder / "data"
    for number, length in enumerate(lengths):
        (data / str(number)).mkdir(parents=True)
        seen = rng.normal(size=(length + 1, 3))
        ended = np.arange(length + 1) == length - 1
        columns = {
            "observations": pa.FixedSizeListArray.from_arrays(seen.reshape(-1), 3),
            "actions": pa.array(rng.integers(0, 5, length + 1)),
            "rewards": pa.array(rng.normal(size=length + 1)),
            "terminations": pa.array(ended & (number % 2 == 0)),
            "truncations": pa.array(ended & (number % 2 == 1)),
        }
        pyarrow.dataset.write_dataset(pa.table(columns), data / str(number), format=data_format)
        said = {"id": number, "total_steps": length}
        (data / str(number) / "metadata.json").write_text(json.dumps(said))
    box = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-9] * 3, "high": [9] * 3}
    metadata = {
        "dataset_id": "lab/door-v0",
        "data_format": data_format,
        "total_episodes": len(lengths),
        "total_steps": sum(lengths),
        # The spaces are JSON strings inside JSON.
        "observation_space": json.dumps(box),
        "action_space": json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 5}),
    }
    data.mkdir(parents=True, exist_ok=True)
    (data / "metadata.json").write_text(json.dumps(metadata))
    return folder


def change_table(folder: Path, data_format: str, change: Callable[[Any], Any]) -> None:
    """Replaces the table of an episode by `change(table)`. If the result is None, nothing is stored."""
    import pyarrow.dataset

    (file,) = folder.glob(f"*.{data_format}")
    changed = change(pyarrow.dataset.dataset(file, format=data_format).to_table())
    file.unlink()
    if changed is not None:
        pyarrow.dataset.write_dataset(changed, folder, format=data_format, existing_data_behavior="overwrite_or_ignore")
