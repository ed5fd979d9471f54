"""TFDS reads exactly the values that a Gymnasium environment or a `Logger` recorded."""

from __future__ import annotations

import json
import pathlib
import tempfile

import gymnasium
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.recording.environments import record
from kabuki_rlds.recording.logger import Logger
from tests import expected
from tests.environments import Endless, Episodes, Everything, act, assert_same


def read(folder, split="train"):
    return expected.read(folder / "1.0.0", split)


# --- Gymnasium ---


def test_hopper_is_recorded_exactly(tmp_path):
    gave = Episodes()
    with record(gymnasium.make("Hopper-v5"), tmp_path / "hopper") as env:
        act(env, 5, gave)
        assert env.num_episodes == 5
    found = read(tmp_path / "hopper")
    assert_same(found.steps, gave.steps)
    assert found.lengths == gave.lengths
    assert found.steps["reward"][0].dtype == np.float64


def test_every_kind_of_space_is_recorded_exactly(tmp_path):
    gave = Episodes()
    with record(Everything(length=70), tmp_path / "all", info=["time", "note"]) as env:
        act(env, 2, gave, ("time", "note"))
    found = read(tmp_path / "all")
    assert_same(found.steps, gave.steps)
    assert found.lengths == [71, 71]
    features = tfds.builder_from_directory(tmp_path / "all" / "1.0.0").info.features["steps"]
    assert isinstance(features["observation"]["camera"], tfds.features.Image)


def test_a_truncated_episode_is_not_terminal(tmp_path):
    gave = Episodes()
    with record(Everything(limit=3), tmp_path / "x.hdf5") as env:
        act(env, 2, gave)
    with h5py.File(tmp_path / "x.hdf5") as f:
        assert f["discount"][:].tolist() == [1, 1, 1, 0] * 2  # The last value of an episode is padding.
        assert not f["is_terminal"][:].any()
        assert f["is_last"][:].tolist() == [False, False, False, True] * 2
    assert kabuki_rlds.validate(tmp_path / "x.hdf5") == []


def test_an_unfinished_episode_is_truncated_at_close(tmp_path):
    gave = Episodes()
    with record(Endless(), tmp_path / "endless") as env:
        observation, _ = env.reset()
        gave.begin(observation)
        for _ in range(1000):
            observation, reward, *_ = env.step(1)
            gave.step(1, reward, 1.0, observation)
        gave.end(terminal=False)
    assert_same(read(tmp_path / "endless").steps, gave.steps)


def test_info_true_records_the_entries_of_the_first_step(tmp_path, caplog):
    class Late(Everything):
        def step(self, action):
            *made, info = super().step(action)
            return *made, info | ({"late": 1} if self._t == 3 else {})

    with record(Late(), tmp_path / "x", info=True) as env:
        env.reset()
        env.set_episode_metadata({"try": 1})
        act(env, 2, Episodes())
        env.set_episode_metadata({"try": 2})
    found = read(tmp_path / "x")
    assert [v.item() for v in found.episodes["try"]] == [0, 2]  # The first episode had no steps.
    assert [v.item() for v in found.steps["time"][:6]] == [0, 1, 2, 3, 4, 5]
    assert [v.item() for v in found.steps["nested/x"][:6]] == [0, 1, 2, 3, 4, 5]  # The first value is padding.
    assert found.steps["note"][:3] == [b"begin", "é".encode(), "éé".encode()]
    assert [r.message for r in caplog.records if "late" in r.message] == [
        "info has 'late', which the first step did not have; not recorded"
    ]


def test_missing_info_entry_is_rejected(tmp_path):
    env = record(Everything(), tmp_path / "x", info=["speed"])
    env.reset()
    with pytest.raises(KabukiError, match=r"info has no entry 'speed'.*returned 'time', 'note', 'error', 'nested'"):
        env.step(env.action_space.sample())
    env.close()


def test_the_wrapper_behaves_like_the_environment(tmp_path):
    inner = Everything()
    inner.colour = "red"  # type: ignore[attr-defined]
    with record(inner, tmp_path / "x") as env:
        assert isinstance(env, gymnasium.Env)
        assert env.unwrapped is inner
        assert env.get_wrapper_attr("colour") == "red"
        assert env.observation_space is inner.observation_space


def test_the_specs_are_stored_in_the_dataset(tmp_path):
    with record(gymnasium.make("CartPole-v1"), tmp_path / "x", metadata={"who": "me"}) as env:
        act(env, 1, Episodes())
    stored = json.loads((tmp_path / "x" / "1.0.0" / "metadata.json").read_text())
    assert stored["environment"] == "CartPole-v1"
    assert stored["who"] == "me"
    assert stored["environment_specs"]["action_spec"]["num_values"] == 2
    assert stored["environment_specs"]["observation_spec"]["shape"] == [4]
    file = kabuki_rlds.convert(tmp_path / "x", tmp_path / "x.hdf5").path
    assert stored.pop("kabuki") == {"last_is_step": {"train": []}}
    assert json.loads(kabuki_rlds.inspect(file).info.environment) == stored


def test_steps_after_close_are_rejected(tmp_path):
    env = record(Everything(), tmp_path / "x")
    act(env, 1, Episodes())
    env.close()
    env.close()
    with pytest.raises(KabukiError, match="the recording is closed"):
        env.reset()
    with pytest.raises(KabukiError, match="the recording is closed"):
        env.step(env.action_space.sample())
    assert read(tmp_path / "x").lengths == [6]


def test_record_rejects_other_objects(tmp_path):
    with pytest.raises(KabukiError, match=r"expected a dm_env or Gymnasium environment, got builtins.dict;"):
        record({}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- the logger ---


def log(logger, episodes=1, steps=3, first=0):
    """Logs episodes whose observations count the steps."""
    for i in range(episodes):
        logger.reset({"n": np.int32(first + i), "t": 0})
        for t in range(steps):
            logger.step(float(t), t, {"n": np.int32(first + i), "t": t + 1}, last=t == steps - 1)


def numbers(folder, split="train"):
    """The number of each episode, read from its first step."""
    found = read(folder, split)
    starts = np.cumsum([0, *found.lengths[:-1]])
    return [int(found.steps["observation/n"][start]) for start in starts]


def test_the_fields_are_learned_from_the_first_step(tmp_path):
    gave = Episodes()
    values = [
        {"f64": 0.1 * t, "text": "ü" * t, "bytes": b"\0\xff" * t, "u64": np.uint64(2**64 - 1 - t), "ok": t % 2 == 0}
        for t in range(4)
    ]
    with Logger(tmp_path / "robot") as logger:
        logger.reset(values[0])
        gave.begin(values[0])
        for t in range(1, 4):
            action = {"a": (np.float32(t), [b"x", {"deep/er": np.arange(3)}])}
            logger.step(action, t, values[t], discount=0.5, metadata={"m": [1, t]}, last=t == 3)
            gave.step(action, float(t), 0.5, values[t], m=np.array([1, t]))
        gave.end(terminal=False)
    gave.steps["m"].insert(0, np.zeros(2, int))  # `reset` had no metadata.
    assert_same(read(tmp_path / "robot").steps, gave.steps)


def test_a_terminal_step_is_last_and_has_discount_0(tmp_path):
    with Logger(tmp_path / "x") as logger:
        logger.reset(0)
        logger.step(1, 1.0, 1)
        logger.step(1, 1.0, 2, terminal=True)
        with pytest.raises(KabukiError, match="no episode is in progress; call reset first"):
            logger.step(1, 1.0, 3)
    found = read(tmp_path / "x")
    assert [v.item() for v in found.steps["discount"]] == [1, 0, 0]
    assert [v.item() for v in found.steps["is_terminal"]] == [False, False, True]


@pytest.mark.parametrize("unfinished", ["keep", "drop"])
def test_an_unfinished_episode_is_kept_or_dropped_by_option(tmp_path, unfinished):
    with Logger(tmp_path / "x", unfinished=unfinished) as logger:
        log(logger, 1)
        for n in (1, 2):  # The next reset truncates the first episode, and close the second.
            logger.reset({"n": np.int32(n), "t": 0})
            logger.step(0.0, 0, {"n": np.int32(n), "t": 1})
    found = read(tmp_path / "x")
    assert found.lengths == ([4, 2, 2] if unfinished == "keep" else [4])
    assert not any(found.steps["is_terminal"])
    assert sum(map(bool, found.steps["is_last"])) == len(found.lengths)


def test_an_episode_without_steps_is_not_written(tmp_path):
    with Logger(tmp_path / "x") as logger:
        logger.reset({"n": np.int32(7), "t": 0})
        log(logger, 1)
        logger.reset({"n": np.int32(8), "t": 0})
    assert numbers(tmp_path / "x") == [0]


def test_a_recording_without_episodes_leaves_no_files(tmp_path):
    with Logger(tmp_path / "a" / "x") as logger:
        logger.reset(1)
    with Logger(tmp_path / "x.hdf5") as logger:
        logger.reset(1)
    assert list(tmp_path.iterdir()) == []


def test_discard_episode_works_until_the_next_episode_begins(tmp_path):
    with Logger(tmp_path / "x") as logger:
        log(logger, 1, first=0)
        logger.discard_episode()  # Removes an episode that has ended.
        log(logger, 1, first=1)
        logger.reset({"n": np.int32(2), "t": 0})
        logger.step(0.0, 0, {"n": np.int32(2), "t": 1})
        logger.discard_episode()  # Discards the current episode: its remaining steps are ignored.
        logger.step(0.0, 0, {"n": np.int32(2), "t": 2}, last=True)
        with pytest.raises(KabukiError, match="no episode to discard"):
            logger.discard_episode()
        log(logger, 1, first=3)
        assert logger.num_episodes == 2
    assert numbers(tmp_path / "x") == [1, 3]


def test_episode_metadata_can_be_set_before_or_after_the_end(tmp_path):
    with Logger(tmp_path / "x") as logger:
        log(logger, 1)
        logger.set_episode_metadata({"goal": "red", "score": {"a": 0.1}})
        log(logger, 1)
        logger.set_episode_metadata({"goal": "no longer", "score": {"a": 0.2}})
        logger.set_episode_metadata({"goal": "g", "score": {"a": 0.2}})
        logger.reset({"n": np.int32(9), "t": 0})
        logger.set_episode_metadata({"goal": "blue" * 100, "score": {"a": 0.3}})
        logger.step(0.0, 0, {"n": np.int32(9), "t": 1}, last=True)
        with pytest.raises(KabukiError, match=r"episode metadata: field 'colour' is not in .* have goal, score/a;"):
            logger.set_episode_metadata({"goal": "x", "score": {"a": 1.0}, "colour": 1})
        log(logger, 1)
    found = read(tmp_path / "x")
    assert found.episodes["goal"] == [b"red", b"g", b"blue" * 100, b""]
    assert [v.item() for v in found.episodes["score/a"]] == [0.1, 0.2, 0.3, 0.0]


def test_metadata_without_an_episode_is_rejected(tmp_path):
    with Logger(tmp_path / "x") as logger:
        with pytest.raises(KabukiError, match="no episode to set metadata for"):
            logger.set_episode_metadata({"goal": "red"})
        log(logger, 1)
    with pytest.raises(KabukiError, match="the recording is closed"):
        logger.set_episode_metadata({"goal": "red"})
    assert read(tmp_path / "x").episodes == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"t": np.zeros(2)},
            r"'observation/t' does not match the recording: got shape \(2,\), expected shape \(\)",
        ),
        ({"t": 0.5}, r"field 'observation/t' .* got float 0.5, expected int64, which cannot hold this value"),
        ({"t": "now"}, r"field 'observation/t' .* got str 'now', expected int64"),
        ({"extra": 1}, r"field 'observation' .* got the fields n, t, extra, expected the fields n, t"),
        ({"n": np.int64(2**40)}, r"field 'observation/n' .*1099511627776.* int32, which cannot hold this value"),
    ],
)
def test_a_step_that_does_not_match_truncates_the_episode(tmp_path, changed, message):
    with Logger(tmp_path / "x") as logger:
        logger.reset({"n": np.int32(0), "t": 0})
        logger.step(0.0, 0, {"n": np.int32(0), "t": 1})
        with pytest.raises(KabukiError, match=message):
            logger.step(0.0, 0, {"n": np.int32(0), "t": 2} | changed)
        with pytest.raises(KabukiError, match="call reset first"):
            logger.step(0.0, 0, {"n": np.int32(0), "t": 3})
        log(logger, 1, first=1)
    found = read(tmp_path / "x")
    assert found.lengths == [2, 4]
    assert [v.item() for v in found.steps["is_last"]] == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        (
            (np.zeros(3), None),
            (np.zeros(4), None),
            r"'observation' .*got shape \(4,\), expected shape \(3,\)",
        ),
        ((np.zeros(3), None), ("go", None), r"'observation' .*got str 'go', expected float64"),
        (({"a": 0, "b": 0}, None), ({"a": 0}, None), r"'observation' .*got the fields a, expected the fields a, b"),
        (({"a": 0}, None), ({"a": 0, "b": 0}, None), r"'observation' .*got the fields a, b, expected the fields a"),
        ((0, {"skill": 1}), (0, {"skill": "grasp"}), r"'skill' .*got str 'grasp', expected int64"),
        ((0, {"skill": 1}), (0, None), r"step 1 of the episode has no metadata 'skill', which every step must have"),
    ],
)
def test_an_error_names_the_first_step_if_it_does_not_match_the_reset(tmp_path, reset, step, message):
    with Logger(tmp_path / "x") as logger:
        logger.reset(reset[0], metadata=reset[1])
        with pytest.raises(KabukiError, match=message):
            logger.step(0.0, 0.0, step[0], metadata=step[1])
        logger.reset(reset[0], metadata=reset[1])
        logger.step(0.0, 0.0, reset[0], metadata=reset[1], last=True)
    assert read(tmp_path / "x").lengths == [2]


def test_the_fields_hold_both_the_reset_and_the_first_step(tmp_path):
    with Logger(tmp_path / "x") as logger:
        logger.reset(np.full(3, 0.1))
        logger.step(0.0, 0.0, np.ones(3, np.int8), last=True)
        logger.reset(np.ones(3, np.int8))
        logger.step(0.0, 0.0, np.full(3, 0.1), last=True)
    assert [value.tolist() for value in read(tmp_path / "x").steps["observation"]] == [
        [0.1] * 3,
        [1] * 3,
        [1] * 3,
        [0.1] * 3,
    ]


@pytest.mark.parametrize(
    ("first", "later", "message"),
    [
        ("go", 3, "field 'observation' does not match the recording: got int 3, expected text"),
        (["a", "b"], ["a"], r"got shape \(1,\), expected text of shape \(2,\)"),
        (0, 2**63, "field 'observation': 9223372036854775808 does not fit int64"),
    ],
)
def test_an_observation_of_another_type_truncates_the_episode(tmp_path, first, later, message):
    with Logger(tmp_path / "x") as logger:
        logger.reset(first)
        logger.step(0, 0.0, first)
        with pytest.raises(KabukiError, match=message):
            logger.step(0, 0.0, later)
    assert read(tmp_path / "x").lengths == [2]


def test_step_metadata_must_match_the_first_step(tmp_path):
    with Logger(tmp_path / "x") as logger:
        for later, message in (
            ({"speed": 1.0}, "step 2 of the episode has no metadata 7, which every step must have"),
            ({7: 1, "speed": 1.0, "more": 1}, "'more' was not in the first step of the recording, which has 7, speed"),
            ({7: "one", "speed": 1.0}, "field '7' does not match the recording: got str 'one', expected"),
        ):
            logger.reset(0)
            logger.step(0, 0.0, 0, metadata={7: 1, "speed": 0.5})  # type: ignore[dict-item]
            with pytest.raises(KabukiError, match=message):
                logger.step(0, 0.0, 0, metadata=later)  # type: ignore[arg-type]
    found = read(tmp_path / "x")
    assert found.lengths == [2, 2, 2]
    assert [v.item() for v in found.steps["7"]] == [0, 1] * 3


def test_invalid_metadata_names_are_rejected(tmp_path):
    with Logger(tmp_path / "x") as logger:
        logger.reset(0)
        with pytest.raises(KabukiError, match=r"^'' cannot be the name of a field; rename it"):
            logger.step(0, 0.0, 0, metadata={"": 1})
        logger.reset(0)
        for name in ("steps", "steps/more"):
            with pytest.raises(KabukiError, match="episode metadata: the name 'steps' is reserved for the steps"):
                logger.set_episode_metadata({name: 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "a/b"}, "^split: 'a/b' is not a valid name; use letters, digits, _ and -"),
        ({"images": "gif"}, "^images: 'gif' is neither 'png' nor 'jpeg'"),
        ({"images": {"observation": "jpg"}}, "^images: 'jpg' is neither 'png' nor 'jpeg'"),
    ],
)
def test_invalid_options_are_rejected_before_files_are_created(tmp_path, options, message):
    with pytest.raises(KabukiError, match=message):
        Logger(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_images_of_an_unknown_field_are_rejected(tmp_path):
    with Logger(tmp_path / "x", images={"observation/top": "png"}) as logger:
        logger.reset(1.0)
        with pytest.raises(KabukiError, match=r"no step field 'observation/top'; the step fields are action, dis.*"):
            logger.step(0, 0.0, 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (None, "field 'observation': a value of type NoneType cannot be recorded"),
        ({"x": object()}, "field 'observation/x': a value of type object cannot be recorded"),
        ({"x": {}}, "field 'observation/x': an empty dict"),
        (np.complex64(1), "field 'observation': dtype complex64 cannot be recorded"),
        ({"a": {"b": 1}, "a/b": 2}, "field 'observation/a/b': the path conflicts with another field"),
        ({"a": 1, "": 2}, "field 'observation': key '' cannot be the name of a field"),
        ({"a": {"b//c": 1}}, "field 'observation/a': key 'b//c' cannot be the name of a field"),
    ],
)
def test_values_that_cannot_be_recorded_are_rejected_by_name(tmp_path, observation, message):
    with Logger(tmp_path / "x") as logger:
        logger.reset(observation)
        with pytest.raises(KabukiError, match=message):
            logger.step(0, 0.0, observation)
    assert not (tmp_path / "x").exists()


def test_rewards_are_float64_even_if_the_first_is_an_int(tmp_path):
    with Logger(tmp_path / "x") as logger:
        logger.reset(0)
        logger.step(0, 0, 0)
        logger.step(0, 0.1, 0, last=True)
    assert [v.item() for v in read(tmp_path / "x").steps["reward"]] == [0, 0.1, 0]


def test_image_format_can_be_set_per_field(tmp_path):
    def frame(i):
        return {name: np.full((8, 8, 3), 16 * i, np.uint8) for name in ("top", "wrist", "raw")}

    with Logger(tmp_path / "x", images={"observation/top": "png", "observation/wrist": "jpeg"}) as logger:
        for _ in range(2):
            logger.reset(frame(0))
            for i in range(1, 4):
                logger.step(0, 0.0, frame(i), last=i == 3)
    features = tfds.builder_from_directory(tmp_path / "x" / "1.0.0").info.features["steps"]["observation"]
    assert features["top"].encoding_format == "png"
    assert features["wrist"].encoding_format == "jpeg"
    assert not isinstance(features["raw"], tfds.features.Image)
    found = read(tmp_path / "x")
    for name in ("top", "wrist", "raw"):  # JPEG keeps an image of one colour exactly.
        assert [int(image[0, 0, 0]) for image in found.steps[f"observation/{name}"]] == [0, 16, 32, 48] * 2


def test_image_format_for_a_field_without_images_is_rejected(tmp_path):
    with Logger(tmp_path / "x", images={"observation": "png"}) as logger:
        logger.reset(1.0)
        with pytest.raises(KabukiError, match=r"images: field 'observation' is .*, but an image is uint8"):
            logger.step(0, 0.0, 1.0)


def test_a_config_declares_the_features(tmp_path):
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="mine",
        overall_description="About it.",
        observation_info=tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes"),
        action_info=tfds.features.ClassLabel(names=["left", "right"]),
        reward_info=np.float64,
        discount_info=np.float32,
        step_metadata_info={"words": tfds.features.Sequence(tfds.features.Text())},
        episode_metadata_info={"who": tfds.features.Text()},
    )
    with Logger(tmp_path / "x", config=config) as logger:
        logger.reset([0.5], metadata={"words": []})
        logger.set_episode_metadata({"who": "me"})
        logger.step(1, 0.1, [0.5, 1], metadata={"words": ["a", "b"]}, last=True)
    info = tfds.builder_from_directory(tmp_path / "x" / "1.0.0").info
    assert info.description.strip() == "About it."
    assert info.features["steps"]["action"].names == ["left", "right"]
    found = read(tmp_path / "x")
    assert [v.item() for v in found.steps["reward"]] == [0.1, 0.0]
    assert [v.tolist() for v in found.steps["observation"]] == [[0.5], [0.5, 1]]
    assert [list(v) for v in found.steps["words"]] == [[], [b"a", b"b"]]
    assert found.episodes["who"] == [b"me"]


def config(**infos):
    """A config of declared features. The observation is a list of any length."""
    plain = {"observation_info": tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes")}
    plain |= {"action_info": np.int64, "reward_info": np.float64, "discount_info": np.float64}
    return tfds.rlds.rlds_base.DatasetConfig(name="mine", overall_description="", **plain | infos)


LISTS_OF_LISTS = tfds.features.Sequence(tfds.features.Sequence(tfds.features.Scalar(np.int64)))


def test_a_list_of_another_rank_truncates_the_episode(tmp_path):
    with Logger(tmp_path / "x", config=config()) as logger:
        logger.reset([1.0])
        logger.step(0, 0.0, [1.0, 2.0])
        with pytest.raises(KabukiError, match=r"got shape \(1, 1\), expected float32 \(\?,\)"):
            logger.step(0, 0.0, [[1.0]])
    assert read(tmp_path / "x").lengths == [2]


def test_nested_variable_length_lists_are_rejected(tmp_path):
    says = r"field '{}': int64 \(\?, \?\) in lists of lists cannot be recorded"
    with Logger(tmp_path / "x", config=config(observation_info=LISTS_OF_LISTS)) as logger:
        logger.reset([[1], [2, 3]])
        with pytest.raises(KabukiError, match=says.format("observation")):
            logger.step(0, 0.0, [[1], [2, 3]])
    of_episodes = config(episode_metadata_info={"path": LISTS_OF_LISTS})
    with pytest.raises(KabukiError, match=says.format("path")) as error:
        Logger(tmp_path / "x", config=of_episodes)
    assert str(error.value).startswith(f"{tmp_path / 'x'}: ")
    assert list(tmp_path.iterdir()) == []
    # The lock is released although the error object still exists.
    Logger(tmp_path / "x").close()


# --- whatever it is ---

_SHAPE = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def _arrays(dtype):
    """A strategy of arrays of one shape, which is drawn first."""
    return _SHAPE.map(lambda shape: hnp.arrays(dtype, shape))


def _leaf():
    """A strategy that draws a strategy for the values of one field."""
    numbers = [
        np.dtype(name) for name in ("bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64")
    ]
    return st.one_of(
        *map(_arrays, numbers),
        st.just(st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
        st.just(st.binary(max_size=4)),
        st.just(st.floats()),
        st.just(st.booleans()),
        st.just(st.integers(-(2**63), 2**63 - 1)),
    )


def _group(inner):
    names = st.text("abc", min_size=1, max_size=2)
    return st.one_of(
        st.dictionaries(names, inner, min_size=1, max_size=3).map(st.fixed_dictionaries),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: st.tuples(st.just({"in": 0}), *items)),
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), observation=st.recursive(_leaf(), _group, max_leaves=5), action=_leaf())
def test_tfds_reads_exactly_the_logged_values(data, observation, action):
    episodes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    gave = Episodes()
    with tempfile.TemporaryDirectory() as folder:
        with Logger(pathlib.Path(folder) / "x") as logger:
            for steps in episodes:
                first = data.draw(observation)
                logger.reset(first)
                gave.begin(first)
                for t in range(steps):
                    did, reward, seen = data.draw(action), data.draw(st.floats()), data.draw(observation)
                    logger.step(did, reward, seen, discount=0.5, last=t == steps - 1)
                    gave.step(did, reward, 0.5, seen)
                gave.end(terminal=False)
        found = read(pathlib.Path(folder) / "x")
    assert found.lengths == [steps + 1 for steps in episodes]
    assert_same(found.steps, gave.steps)


# --- what is there already ---


def test_a_second_recording_continues_the_dataset(tmp_path):
    for first in (0, 2):
        with Logger(tmp_path / "x") as logger:
            log(logger, 2, first=first)
    assert numbers(tmp_path / "x") == [0, 1, 2, 3]
    with Logger(tmp_path / "x", split="test") as logger:
        log(logger, 1, first=9)
    assert numbers(tmp_path / "x", "test") == [9]
    assert numbers(tmp_path / "x") == [0, 1, 2, 3]
    assert tfds.builder("x", data_dir=tmp_path).info.splits["train"].num_examples == 4


def test_steps_that_do_not_match_the_dataset_are_rejected(tmp_path):
    with Logger(tmp_path / "x") as logger:
        log(logger)
    with Logger(tmp_path / "x") as logger:
        logger.reset({"n": np.int32(0), "u": 0})
        with pytest.raises(KabukiError, match=r"field 'observation/u' is not in the dataset.*observation/t"):
            logger.step(0.0, 0, {"n": np.int32(0), "u": 0})
        logger.reset({"n": np.int32(0)})
        with pytest.raises(
            KabukiError, match="the dataset has the field 'observation/t', but the step has no value for it"
        ):
            logger.step(0.0, 0, {"n": np.int32(0)})
        log(logger, first=1)
    assert numbers(tmp_path / "x") == [0, 1]


def test_a_dataset_written_by_tfds_is_continued(dataset, tmp_path):
    import shutil

    from tests import datasets

    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    before = expected.read(folder)
    recipe = datasets.plain().splits["train"][0]
    steps = recipe["steps"]
    kept = {"observation", "action", "reward", "discount", "is_first", "is_last", "is_terminal"}
    with Logger(tmp_path / "plain") as logger:
        extra = [{name: value for name, value in step.items() if name not in kept} for step in steps]
        logger.reset(steps[0]["observation"], metadata=extra[0])
        for t in range(1, len(steps)):
            was = steps[t - 1]
            logger.step(
                was["action"], was["reward"], steps[t]["observation"], metadata=extra[t], last=t == len(steps) - 1
            )
        logger.set_episode_metadata({name: value for name, value in recipe.items() if name != "steps"})
    after = expected.read(folder)
    assert after.lengths == [*before.lengths, len(steps)]
    count = sum(before.lengths)
    assert_same({p: v[:count] for p, v in after.steps.items()}, before.steps)
    assert not list(folder.glob("plain-train*-of-*"))
    assert expected.read(folder, "test").lengths  # The other split still has its episodes.


def test_a_second_concurrent_recording_is_rejected(tmp_path):
    with Logger(tmp_path / "x"), pytest.raises(KabukiError, match="another process records there"):
        Logger(tmp_path / "x")
    with Logger(tmp_path / "x") as logger:
        log(logger)


def test_an_invalid_path_is_reported(tmp_path):
    (tmp_path / "file").touch()
    long = "x" * 300
    for path, message in (
        (tmp_path / "file" / "a" / "b", f"{tmp_path}/file/a/b/1.0.0: cannot be created (Not a directory)"),
        (tmp_path / "file" / "x.hdf5", f"{tmp_path}/file/x.hdf5.recording: cannot be created (Not a directory)"),
        # The parent folder is created and removed again.
        (tmp_path / "new" / long, f"{tmp_path}/new/{long}/1.0.0: cannot be created (File name too long)"),
        (tmp_path / long, f"{tmp_path}/{long}: cannot record to this path (File name too long)"),
        (tmp_path / f"{long}.h5", f"{tmp_path}/{long}.h5: cannot record to this path (File name too long)"),
    ):
        with pytest.raises(KabukiError) as error:
            Logger(path)
        assert str(error.value) == message
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_appending_to_array_record_shards_is_rejected(dataset):
    with pytest.raises(KabukiError, match="has array_record shards, which cannot be appended to"):
        Logger(dataset("array_record"))


# --- HDF5 ---


def test_recording_to_hdf5_writes_and_extends_a_kabuki_file(tmp_path):
    path = tmp_path / "x.hdf5"
    for first in (0, 2):
        with Logger(path, description="Counted.") as logger:
            log(logger, 1, first=first)
            logger.set_episode_metadata({"who": "me"})
            log(logger, 1, first=first + 1)
        assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as f:
        assert f["observation/n"][:][f["episodes/start"][:]].tolist() == [0, 1, 2, 3]
        assert f["episodes/metadata/who"].asstr()[:].tolist() == ["me", "", "me", ""]
        assert f["observation/n"].dtype == np.int32
        assert f.attrs["description"] == "Counted."
        assert f.attrs["name"] == "x"


def test_steps_that_do_not_match_the_file_are_rejected_and_the_file_is_kept(tmp_path):
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger)
    before = path.read_bytes()
    with Logger(path) as logger:
        logger.reset(0)
        with pytest.raises(KabukiError, match="field 'observation' is not in the dataset"):
            logger.step(0.0, 0, 0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_a_file_with_images_keeps_its_image_storage(tmp_path, images):
    path = tmp_path / "x.hdf5"
    gave = Episodes()
    with record(Everything(length=3), tmp_path / "x") as env:
        act(env, 1, gave)
    kabuki_rlds.convert(tmp_path / "x", path, images=images)
    with record(Everything(length=3), path) as env:
        act(env, 1, gave)
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as f:
        stored = f["observation/camera"][:]
        joints = f["observation/joints"][:]
    if images == "encoded":
        stored = np.stack([tf.io.decode_png(file.tobytes()).numpy() for file in stored])
    assert stored.tobytes() == b"".join(image.tobytes() for image in gave.steps["observation/camera"])
    assert joints.tobytes() == b"".join(row.tobytes() for row in gave.steps["observation/joints"])
