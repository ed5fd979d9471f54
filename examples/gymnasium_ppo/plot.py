"""Plots the learning curve from a Kabuki HDF5 file. Needs only h5py, NumPy and Matplotlib."""

import argparse
import json

import h5py
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    """Reads the file and writes the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="a Kabuki HDF5 file")
    parser.add_argument("image", help="the image file to write")
    arguments = parser.parse_args()
    with h5py.File(arguments.file) as f:
        reward = f["reward"][:]
        reward[f["is_last"][:]] = 0  # The reward of the last row is padding: the row holds only an observation.
        start, length = f["episodes/start"][:], f["episodes/length"][:]
        updates = f["episodes/metadata/updates"][:]
        about = json.loads(f.attrs["environment"])
    returns = np.add.reduceat(reward, start)
    acted = np.cumsum(length - 1)
    of_policy = np.unique(updates)
    mean = [returns[updates == policy].mean() for policy in of_policy]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(acted, returns, ".", color="0.75", markersize=3, label="one episode")
    ends = [acted[updates == policy][-1] for policy in of_policy]
    axes.plot(ends, mean, color="tab:blue", label="mean of the episodes of one policy")
    axes.set(xlabel="step", ylabel="return", title=f"{about['environment']}, {about['agent']}")
    axes.legend(loc="upper left")
    figure.savefig(arguments.image, dpi=100)
    print(
        f"{arguments.image}: {len(returns)} episodes under {len(of_policy)} policies, "
        f"mean return {mean[0]:.0f} under the first, {mean[-1]:.0f} under the last"
    )


if __name__ == "__main__":
    main()
