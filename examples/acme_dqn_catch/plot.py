"""Plots the learning curve from a Kabuki HDF5 file. Needs only h5py, NumPy and Matplotlib."""

import argparse
import json

import h5py
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

#: The number of episodes in the moving average.
WINDOW = 25


def main() -> None:
    """Reads the file and writes the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="a Kabuki HDF5 file")
    parser.add_argument("image", help="the image file to write")
    arguments = parser.parse_args()
    with h5py.File(arguments.file) as f:
        reward = f["reward"][:]
        reward[f["is_last"][:]] = 0  # The reward of the last row is padding: the row holds only an observation.
        returns = np.add.reduceat(reward, f["episodes/start"][:])
        agent = json.loads(f.attrs["environment"])["agent"]
    curve = np.convolve(returns, np.ones(WINDOW) / WINDOW, "valid")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(np.arange(len(returns)), returns, ".", color="0.75", markersize=3, label="one episode")
    axes.plot(np.arange(WINDOW - 1, len(returns)), curve, color="tab:blue", label=f"mean of the last {WINDOW}")
    axes.set(xlabel="episode", ylabel="return", title=f"Catch, {agent}", ylim=(-1.1, 1.1))
    axes.legend(loc="center right")
    figure.savefig(arguments.image, dpi=100)
    print(
        f"{arguments.image}: {len(returns)} episodes, mean return {returns[:WINDOW].mean():+.2f} in the first "
        f"{WINDOW}, {returns[-WINDOW:].mean():+.2f} in the last {WINDOW}"
    )


if __name__ == "__main__":
    main()
