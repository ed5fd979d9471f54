"""What the logs in this folder hold, and how each was made, one with each version of EnvLogger.

python3.8  -m venv e && e/bin/pip install envlogger==1.0.0 'protobuf<3.21' && e/bin/python record.py 1.0.0
python3.9  -m venv e && e/bin/pip install envlogger==1.0.8 'protobuf<3.21' && e/bin/python record.py 1.0.8
python3.9  -m venv e && e/bin/pip install envlogger==1.1 'protobuf<3.21' && e/bin/python record.py 1.1
python3.10 -m venv e && e/bin/pip install envlogger==1.2 'protobuf<3.21' && e/bin/python record.py 1.2
python3.11 -m venv e && e/bin/pip install envlogger==1.3 "numpy<2" && e/bin/python record.py 1.3  # glibc 2.38 or newer
"""

import sys

import numpy as np

EPISODES = 4
METADATA = {"robot": "arm", "limits": np.array([-1.0, np.inf]), "seed": 7}


def length(episode):
    """How many steps an episode has; one is nothing but its reset."""
    return [5, 1, 8, 3][episode]


def observation(episode, t):
    """A value of every kind that EnvLogger stores."""
    x = 10 * episode + t
    random = np.random.default_rng(x)
    return {
        "joints": random.normal(size=3),
        "board": random.integers(0, 256, (4, 3, 3)).astype(np.uint8),
        "pose": (np.float32(x), random.normal(size=(2, 2)).astype(np.float32)),
        "cloud": random.normal(size=(x % 4, 3)),
        "small": {
            "int8": np.arange(-x, -x + 2).astype(np.int8),
            "int16": np.int16(-1000 * x),
            "uint16": np.full(2, 60000 + x, np.uint16),
            "int32": np.array([-x, x, 2**31 - 1 - x], np.int32),
            "uint32": np.uint32(2**32 - 1 - x),
            "int64": random.integers(-(2**62), 2**62, 3),
            "uint64": np.uint64(2**64 - 1 - x),
            "bools": random.integers(0, 2, 5).astype(bool),
        },
    }


def action(episode, t):
    """The action that led to a step, which the first does not have."""
    return None if t == 0 else np.array([episode, t], np.float32)


def reward(episode, t):
    return None if t == 0 else 0.1 * t + episode


def discount(episode, t):
    """An episode of odd number is cut short, which the discount of its last step says."""
    if t == 0:
        return None
    return 0.0 if t == length(episode) - 1 and episode % 2 == 0 else 1.0


def step_metadata(episode, t):
    return {
        "text": "café " * t,
        "raw": bytes([t, 0, 255]),
        "count": 10**12 * episode - t,
        "lucky": t == 3,
        "names": ["a" * i for i in range(1, t + 2)],
    }


def episode_metadata(episode):
    return {"task": f"task {episode}", "success": episode % 2 == 0, "scores": np.arange(3) * episode}


def main(version):
    import dm_env
    import envlogger
    from dm_env import specs

    class Environment(dm_env.Environment):
        episode, t = -1, 0

        def reset(self):
            self.episode, self.t = self.episode + 1, 0
            return dm_env.restart(observation(self.episode, 0))

        def step(self, action):
            self.t += 1
            last = self.t == length(self.episode) - 1
            kind = dm_env.StepType.LAST if last else dm_env.StepType.MID
            values = (f(self.episode, self.t) for f in (reward, discount, observation))
            return dm_env.TimeStep(kind, *values)

        def observation_spec(self):
            return spec(observation(0, 0))

        def action_spec(self):
            return specs.BoundedArray((2,), np.float32, -1, np.inf, "action")

    def spec(value):
        if isinstance(value, dict):
            return {key: spec(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(map(spec, value))
        return specs.Array(np.shape(value), np.asarray(value).dtype)

    environment = Environment()
    logged = envlogger.EnvLogger(
        environment,
        data_directory=version,
        max_episodes_per_file=3,
        step_fn=lambda timestep, action, env: step_metadata(env.episode, env.t),
        episode_fn=lambda timestep, action, env: episode_metadata(env.episode),
        metadata=dict(METADATA),
    )
    with logged:
        for episode in range(EPISODES):
            logged.reset()
            for t in range(1, length(episode)):
                logged.step(action(episode, t))


if __name__ == "__main__":
    main(sys.argv[1])
