"""Trains Acme's DQN on Catch with `acme.EnvironmentLoop`, and records it with EnvLogger.

Needs Python 3.9 and requirements.txt. It does not use kabuki_rlds.
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
    """Trains the agent and writes the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=pathlib.Path, help="folder for EnvLogger's log; it must not exist yet")
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

    def step_fields(timestep, action, environment):
        """The additional field that EnvLogger records with each step."""
        return {"columns_apart": np.int32(abs(environment._ball[1] - environment._paddle))}

    def episode_metadata(timestep, action, environment):
        """The episode metadata. EnvLogger keeps the value of the last step of the episode."""
        nonlocal played
        played += timestep.last()
        return {"caught": bool(timestep.last() and timestep.reward > 0), "episode": np.int64(played)}

    with envlogger.EnvLogger(
        environment,
        data_directory=str(arguments.log),
        step_fn=step_fields,
        episode_fn=episode_metadata,
        metadata={"agent": "DQN of Acme 0.4.0", "environment": "Catch", "seed": arguments.seed},
    ) as logged:
        acme.EnvironmentLoop(logged, agent, label="catch").run(num_episodes=arguments.episodes)


if __name__ == "__main__":
    main()
