"""Trains PPO of Stable-Baselines3 on a Gymnasium task, and records the training with kabuki_rlds."""

import argparse

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import kabuki_rlds


class NoteUpdates(BaseCallback):
    """Stores the number of policy updates in the metadata of each episode."""

    def __init__(self, recorded):
        super().__init__()
        self._recorded = recorded

    def _on_step(self) -> bool:
        # If this step ended an episode, this sets the metadata of the next one. It is set again at each of its steps.
        self._recorded.set_episode_metadata({"updates": self.model._n_updates // self.model.n_epochs})
        return True


def main() -> None:
    """Trains and records the agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the folder to record to, or a file that ends in .hdf5")
    parser.add_argument("--task", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # More threads do not speed up such a small network.
    about = {"agent": "PPO of Stable-Baselines3", "seed": arguments.seed}
    with kabuki_rlds.record(gymnasium.make(arguments.task), arguments.path, metadata=about) as env:
        agent = PPO("MlpPolicy", env, seed=arguments.seed, n_steps=512, device="cpu")
        agent.learn(arguments.steps, callback=NoteUpdates(env))
        print(f"{arguments.path}: {env.num_episodes} episodes")


if __name__ == "__main__":
    main()
