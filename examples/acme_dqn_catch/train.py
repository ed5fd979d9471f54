"""Trains Acme's DQN on Catch, online, under `acme.EnvironmentLoop`; EnvLogger records it.

Runs on Python 3.9 with requirements.txt, and knows nothing of kabuki_rlds.
"""

import argparse
import pathlib

import acme
import envlogger
import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs, wrappers
from acme.agents.tf import dqn
from catch import Catch


def main() -> None:
    """Trains, and writes the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=pathlib.Path, help="folder for EnvLogger's log, which must not be there yet")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tf.random.set_seed(arguments.seed)
    np.random.seed(arguments.seed)
    arguments.log.mkdir(parents=True)

    environment = wrappers.SinglePrecisionWrapper(Catch(arguments.seed))
    spec = specs.make_environment_spec(environment)
    agent = dqn.DQN(
        spec,
        snt.Sequential([snt.Flatten(), snt.nets.MLP([50, spec.actions.num_values])]),
        epsilon=tf.Variable(0.1),
        learning_rate=1e-3,
        batch_size=64,
        samples_per_insert=16.0,
        min_replay_size=100,
        checkpoint=False,
    )
    played = 0

    def of_step(timestep, action, environment):
        """Goes into the log beside each step."""
        return {"columns_apart": np.int32(abs(environment._ball[1] - environment._paddle))}

    def of_episode(timestep, action, environment):
        """Goes into the log once an episode: what the last step of it gave."""
        nonlocal played
        played += timestep.last()
        return {"caught": bool(timestep.last() and timestep.reward > 0), "episode": np.int64(played)}

    with envlogger.EnvLogger(
        environment,
        data_directory=str(arguments.log),
        step_fn=of_step,
        episode_fn=of_episode,
        metadata={"agent": "DQN of Acme 0.4.0", "environment": "Catch", "seed": arguments.seed},
    ) as logged:
        acme.EnvironmentLoop(logged, agent, label="catch").run(num_episodes=arguments.episodes)


if __name__ == "__main__":
    main()
