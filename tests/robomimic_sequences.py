"""Run by a Python that has robomimic: what its `SequenceDataset` serves of a file, as one `.npz`.

    python tests/robomimic_sequences.py DEMO.hdf5 OUT.npz OBSERVATION... [--mask KEY]

It is no part of this package's tests by itself, which run where robomimic need not be.
"""

import argparse

import numpy as np
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset

parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("out")
parser.add_argument("observations", nargs="+")
parser.add_argument("--mask")
arguments = parser.parse_args()

images = [key for key in arguments.observations if key.endswith("image")]
others = [key for key in arguments.observations if key not in images]
obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": others, "rgb": images}})
dataset = SequenceDataset(
    arguments.file,
    obs_keys=arguments.observations,
    dataset_keys=("actions", "rewards", "dones", "states"),
    frame_stack=2,
    seq_length=5,
    get_pad_mask=True,
    goal_mode="last",
    hdf5_cache_mode=None,
    filter_by_attribute=arguments.mask,
)


def leaves(item, path=""):
    if isinstance(item, dict):
        return {k: v for name, inner in item.items() for k, v in leaves(inner, f"{path}/{name}").items()}
    return {path: np.asarray(item)}


items = [leaves(dataset[i]) for i in range(len(dataset))]
np.savez(arguments.out, **{path: np.stack([item[path] for item in items]) for path in items[0]})
