"""TFDS reads exactly the values of dm_env environments that `record` or EnvLogger recorded."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError, MissingDependencyError
from kabuki_rlds.recording.environments import record
from tests import expected
from tests.environments import Episodes, assert_same

dm_env = pytest.importorskip("dm_env")
specs = pytest.importorskip("dm_env.specs")


class Catch(dm_env.Environment):  # type: ignore[name-defined]
    """A ball falls down a board of 10 rows and 5 columns. float32 cannot hold the reward exactly."""

    def __init__(self):
        self._rng = np.random.default_rng(0)
        self._board = np.zeros((10, 5), np.float32)
        self._row = -1
        self.closed = False

    def reset(self):
        self._row, self._column, self._paddle = 0, int(self._rng.integers(5)), 2
        return dm_env.restart(self._observation())

    def step(self, action):
        if self._row in (-1, 9):
            return self.reset()
        self._row += 1
        self._paddle = min(max(self._paddle + int(action) - 1, 0), 4)
        if self._row == 9:
            return dm_env.termination(0.1 if self._paddle == self._column else -0.1, self._observation())
        return dm_env.transition(0.0, self._observation(), 0.99)

    def observation_spec(self):
        return specs.BoundedArray((10, 5), np.float32, 0, 1, "board")

    def action_spec(self):
        return specs.DiscreteArray(3, np.int64, "action")

    def close(self):
        self.closed = True

    def _observation(self):
        self._board[:] = 0  # Reuses the array of the previous observation.
        self._board[self._row, self._column] = self._board[9, self._paddle] = 1
        return self._board


class Arm(dm_env.Environment):  # type: ignore[name-defined]
    """Nested observations and actions, with tuples and lists. Episodes are truncated after 4 steps."""

    def __init__(self):
        self._rng = np.random.default_rng(0)
        self._t = 0

    def reset(self):
        self._t = 0
        return dm_env.restart(self._observation())

    def step(self, action):
        self._t += 1
        made = dm_env.truncation if self._t == 4 else dm_env.transition
        return made(np.float64(self._rng.normal()), self._observation(), 1.0)

    def observation_spec(self):
        joint = specs.Array((3,), np.float64)
        return {
            "arm/joints": (joint, joint),
            "camera": [specs.Array((2, 2, 3), np.uint8)],
            "id": specs.Array((), np.uint64),
        }

    def action_spec(self):
        return [specs.BoundedArray((2,), np.float64, -1, 1), {"grip": specs.DiscreteArray(2)}]

    def _observation(self):
        rng = self._rng
        pixels = rng.integers(0, 256, (2, 2, 3), np.uint8)
        return {"arm/joints": (rng.normal(size=3), rng.normal(size=3)), "camera": [pixels], "id": np.uint64(2**64 - 1)}


def noted(given, timestep, action=None, **metadata):
    """Appends a time step to the expected values, and returns it."""
    if timestep.first():
        given.begin(timestep.observation, **metadata)
        return timestep
    given.step(action, timestep.reward, timestep.discount, timestep.observation, **metadata)
    if timestep.last():
        given.end(timestep.discount == 0)
    return timestep


def act(env, choose, episodes, given):
    for _ in range(episodes):
        timestep = noted(given, env.reset())
        while not timestep.last():
            action = choose()
            timestep = noted(given, env.step(action), action)


def of_catch():
    rng = np.random.default_rng(1)
    return lambda: rng.integers(3)


def of_arm():
    rng = np.random.default_rng(1)
    return lambda: [rng.normal(size=2), {"grip": np.int32(rng.integers(2))}]


def read(folder):
    return expected.read(folder / "1.0.0")


def test_catch_is_recorded_exactly(tmp_path):
    given, inner = Episodes(), Catch()
    with record(inner, tmp_path / "catch") as env:
        act(env, of_catch(), 20, given)
    found = read(tmp_path / "catch")
    assert_same(found.steps, given.steps)
    assert found.lengths == [10] * 20
    assert inner.closed


def test_nested_observations_and_actions_are_recorded_exactly(tmp_path):
    given = Episodes()
    with record(Arm(), tmp_path / "arm") as env:
        act(env, of_arm(), 3, given)
    assert given.steps["action/1/grip"][0].dtype == np.int32  # The dtype of the spec.
    assert_same(read(tmp_path / "arm").steps, given.steps)
    assert not any(map(bool, given.steps["is_terminal"]))


def test_an_environment_that_resets_itself_begins_a_new_episode(tmp_path):
    given, choose = Episodes(), of_catch()
    with record(Catch(), tmp_path / "catch") as env:
        noted(given, env.reset())
        for _ in range(29):
            action = choose()
            noted(given, env.step(action), action)
    found = read(tmp_path / "catch")
    assert found.lengths == [10, 10, 10]
    assert_same(found.steps, given.steps)


def test_the_wrapper_behaves_like_the_environment(tmp_path):
    inner = Catch()
    inner.colour = "red"
    with record(inner, tmp_path / "x") as env:
        assert isinstance(env, dm_env.Environment)
        assert env.colour == "red"
        assert env.observation_spec() == inner.observation_spec()
        assert env.reward_spec() == inner.reward_spec()


def test_the_wrapper_can_be_copied(tmp_path):
    inner = Catch()
    inner.colour = "red"
    with record(inner, tmp_path / "x") as env:
        assert copy.copy(env).colour == "red"
        with pytest.raises(AttributeError, match="no attribute 'taste'"):
            _ = copy.copy(env).taste


def test_info_is_rejected_for_dm_env(tmp_path):
    with pytest.raises(KabukiError, match="info: only Gymnasium environments have info; leave it out for dm_env"):
        record(Catch(), tmp_path / "x", info=True)
    assert list(tmp_path.iterdir()) == []


def test_a_dm_control_task_is_recorded_exactly(tmp_path):
    try:
        from dm_control import suite
    except (ImportError, AttributeError) as e:  # dm_control needs a MuJoCo of the same age.
        pytest.skip(f"dm_control does not load here: {e}")
    given = Episodes()
    rng = np.random.default_rng(0)
    with record(
        suite.load("cheetah", "run", task_kwargs={"time_limit": 0.5, "random": 0}), tmp_path / "cheetah"
    ) as env:
        act(env, lambda: rng.uniform(-1, 1, 6), 2, given)
    found = read(tmp_path / "cheetah")
    assert_same(found.steps, given.steps)
    assert {"observation/position", "observation/velocity"} < set(found.steps)


# --- EnvLogger ---


@pytest.fixture
def envlogger():
    return pytest.importorskip("envlogger")


def backend():
    from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend

    return EnvLoggerBackend


@pytest.mark.reference
def test_envlogger_steps_are_recorded_exactly(tmp_path, envlogger):
    for make, choose, name in ((Catch, of_catch(), "catch"), (Arm, of_arm(), "arm")):
        given = Episodes()
        with envlogger.EnvLogger(make(), backend=backend(), path=tmp_path / name) as env:
            act(env, choose, 3, given)
        assert_same(read(tmp_path / name).steps, given.steps)
    stored = json.loads((tmp_path / "catch" / "1.0.0" / "metadata.json").read_text())
    assert stored["environment_specs"]["action_spec"]["num_values"] == 3


@pytest.mark.reference
def test_step_fn_and_episode_fn_become_fields(tmp_path, envlogger):
    given = Episodes()
    total = 0.0

    def step_fn(timestep, action, env):
        return {"seen": timestep.observation.sum(), "did": "" if action is None else f"went {action}"}

    def episode_fn(timestep, action, env):
        nonlocal total
        total += timestep.reward or 0
        return {"total": total, "at": "end"} if timestep.last() else None

    with envlogger.EnvLogger(
        Catch(), step_fn=step_fn, episode_fn=episode_fn, backend=backend(), path=tmp_path / "x"
    ) as env:
        choose = of_catch()
        for _ in range(3):
            timestep = env.reset()
            noted(given, timestep, **step_fn(timestep, None, None))
            while not timestep.last():
                action = choose()
                timestep = env.step(action)
                noted(given, timestep, action, **step_fn(timestep, action, None))
    found = read(tmp_path / "x")
    assert_same(found.steps, given.steps)
    assert found.episodes["at"] == [b"end"] * 3
    assert found.episodes["total"][-1].item() == total


@pytest.mark.reference
def test_a_finished_episode_is_on_disk_before_the_next_begins(tmp_path, envlogger):
    env = envlogger.EnvLogger(Catch(), backend=backend(), path=tmp_path / "x", episode_fn=lambda *_: {"n": 1})
    act(env, of_catch(), 2, Episodes())
    assert kabuki_rlds.convert(tmp_path / "x", tmp_path / "x.hdf5").num_episodes == 2
    env.close()
    assert read(tmp_path / "x").episodes["n"] == [1, 1]


@pytest.mark.reference
def test_envlogger_accepts_a_backend_object(tmp_path, envlogger):
    made = backend()(tmp_path / "x", unfinished="drop", metadata={"who": "me"})
    with envlogger.EnvLogger(Catch(), backend=made) as env:
        act(env, of_catch(), 1, Episodes())
        made.discard_episode()
        act(env, of_catch(), 2, Episodes())
        env.reset()
        env.step(0)
        assert made.num_episodes == 2
    made.close()  # EnvLogger closes the backend again when it is garbage-collected.
    assert read(tmp_path / "x").lengths == [10, 10]
    assert json.loads((tmp_path / "x" / "1.0.0" / "metadata.json").read_text())["who"] == "me"


@pytest.mark.reference
def test_a_backend_whose_constructor_failed_is_deleted_without_warning(tmp_path, recwarn):
    (tmp_path / "x").touch()
    with pytest.raises(KabukiError, match="is a file; give a folder"):
        backend()(tmp_path / "x")
    assert not recwarn.list


@pytest.mark.reference
def test_step_fn_must_return_a_dict(tmp_path, envlogger):
    logged = envlogger.EnvLogger(Catch(), step_fn=lambda *_: 1.5, backend=backend(), path=tmp_path / "x")
    with logged as env, pytest.raises(KabukiError, match="step_fn must return a dict of fields, but returned a float"):
        env.reset()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reference
def test_a_closed_backend_rejects_steps(tmp_path, envlogger):
    made = backend()(tmp_path / "x")
    env = envlogger.EnvLogger(Catch(), backend=made)
    act(env, of_catch(), 1, Episodes())
    made.close()
    for further in (env.reset, made.discard_episode, lambda: made.set_episode_metadata({"n": 1})):
        with pytest.raises(KabukiError, match="the recording is closed"):
            further()
    assert read(tmp_path / "x").lengths == [10]


def test_backend_without_envlogger_raises_with_the_install_command(monkeypatch):
    for name in ("envlogger", "envlogger.backends", "envlogger.backends.backend_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "kabuki_rlds.recording.envlogger_backend", raising=False)
    with pytest.raises(
        MissingDependencyError,
        match=r"EnvLoggerBackend needs envlogger \(.*\): pip install 'kabuki_rlds\[envlogger\]'; .* Python 3.11",
    ):
        _ = kabuki_rlds.EnvLoggerBackend
    # All other names can be imported.
    names: dict = {}
    exec("from kabuki_rlds import *", names)
    assert names["record"] is record


@pytest.mark.reference
def test_a_last_episode_without_steps_is_not_recorded(tmp_path, envlogger):
    with envlogger.EnvLogger(Catch(), backend=backend(), path=tmp_path / "x") as env:
        act(env, of_catch(), 1, Episodes())
        env.reset()
    assert read(tmp_path / "x").lengths == [10]


@pytest.mark.reference
def test_a_scheduler_skips_steps(tmp_path, envlogger):
    with envlogger.EnvLogger(
        Catch(),
        backend=backend(),
        path=tmp_path / "x",
        scheduler=lambda data: data.timestep.first() or data.timestep.last(),
    ) as env:
        act(env, of_catch(), 2, Episodes())
    assert read(tmp_path / "x").lengths == [2, 2]


@pytest.mark.reference
def test_a_dataset_of_tfds_backend_writer_is_continued(tmp_path, envlogger):
    from envlogger.backends import tfds_backend_writer

    config = tfds.rlds.rlds_base.DatasetConfig(
        name="catch",
        observation_info=tfds.features.Tensor(shape=(10, 5), dtype=np.float32),
        action_info=np.int64,
        reward_info=tfds.features.Tensor(shape=(), dtype=np.float64, encoding="zlib"),
        discount_info=tfds.features.Tensor(shape=(), dtype=np.float64, encoding="zlib"),
    )
    folder = tmp_path / "catch" / "1.0.0"
    folder.mkdir(parents=True)
    theirs = tfds_backend_writer.TFDSBackendWriter(str(folder), config, version="1.0.0", max_episodes_per_file=2)

    class Fresh(Catch):  # TFDSBackendWriter does not copy its observations.
        def _observation(self):
            return super()._observation().copy()

    given, env = Episodes(), Fresh()
    with envlogger.EnvLogger(env, backend=theirs) as logged:
        act(logged, of_catch(), 3, given)
    del theirs, logged  # Otherwise TFDSBackendWriter writes dataset_info.json again when it is garbage-collected.
    converted = kabuki_rlds.convert(folder, tmp_path / "theirs.hdf5")
    assert (converted.num_episodes, converted.warnings) == (3, [])
    assert kabuki_rlds.validate(converted.path) == []
    with envlogger.EnvLogger(env, backend=backend(), path=tmp_path / "catch") as logged:
        act(logged, of_catch(), 2, given)
    found = read(tmp_path / "catch")
    assert found.lengths == [10] * 5
    assert_same(found.steps, given.steps)
