"""Saves the samples of robomimic's `SequenceDataset` to `.npz` files. Runs in a Python that has robomimic.

    python tests/robomimic_sequences.py DEMO.hdf5 OUT.npz [DEMO.hdf5 OUT.npz …]

`test_judges.py` runs it.
"""

import sys

import numpy as np
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset


def leaves(item, path=""):
    if isinstance(item, dict):
        return {k: v for name, inner in item.items() for k, v in leaves(inner, f"{path}/{name}").items()}
    return {path: np.asarray(item)}


def sequences(file, mask):
    dataset = SequenceDataset(
        file,
        obs_keys=("eef_pos", "agentview_image"),
        dataset_keys=("actions", "rewards", "dones", "states"),
        frame_stack=2,
        seq_length=5,
        get_pad_mask=True,
        goal_mode="last",
        hdf5_cache_mode=None,
        filter_by_attribute=mask,
    )
    items = [leaves(dataset[i]) for i in range(len(dataset))]
    return {f"{mask}{path}": np.stack([item[path] for item in items]) for path in items[0]}


obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["eef_pos"], "rgb": ["agentview_image"]}})
for file, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    np.savez(out, **{k: v for mask in (None, "train", "valid") for k, v in sequences(file, mask).items()})
