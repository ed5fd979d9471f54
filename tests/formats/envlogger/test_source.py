"""EnvLogger's Riegeli logs as a source: whole ones of each version, and what killed processes and bad disks leave."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds.formats.envlogger.source import EnvLoggerSource
from tests.places import FIXTURES, ROOT

DATA = FIXTURES
VERSIONS = DATA / "envlogger_versions"
ACME = DATA / "acme_dqn_catch"


def load_recorded() -> Any:
    """What the logs of `envlogger_versions` hold."""
    spec = importlib.util.spec_from_file_location("recorded", VERSIONS / "record.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorded = load_recorded()


def convert(source: Path, folder: Path, **options: Any) -> Path:
    return kabuki_rlds.convert(source, folder / "out.hdf5", **options).path


def episodes_of(file: h5py.File) -> list[slice]:
    starts, lengths = file["episodes/start"][:], file["episodes/length"][:]
    return [slice(a, a + n) for a, n in zip(starts, lengths, strict=True)]


def at(value: Any, path: str) -> Any:
    for part in path.split("/"):
        value = value[int(part)] if isinstance(value, tuple) else value[part]
    return value


# --- whole logs, by hand ---


@pytest.mark.parametrize("version", ["1.0.0", "1.0.8", "1.1", "1.2", "1.3"])
def test_logs_of_each_version_have_what_was_recorded(version, tmp_path):
    file = convert(VERSIONS / version, tmp_path)
    assert kabuki_rlds.validate(file) == []
    with h5py.File(file) as f:
        episodes = episodes_of(f)
        assert [e.stop - e.start for e in episodes] == [recorded.length(e) for e in range(recorded.EPISODES)]
        paths = [
            "joints",
            "board",
            "pose/0",
            "pose/1",
            *(f"small/{name}" for name in recorded.observation(0, 0)["small"]),
        ]
        for e, rows in enumerate(episodes):
            length = recorded.length(e)
            for path in paths:
                column = f[f"observation/{path}"][rows]
                expected = [np.asarray(at(recorded.observation(e, t), path)) for t in range(length)]
                assert column.dtype == expected[0].dtype, path
                np.testing.assert_array_equal(column, np.stack(expected), path)
            for t, cloud in enumerate(f["observation/cloud"][rows]):
                np.testing.assert_array_equal(cloud.reshape(-1, 3), recorded.observation(e, t)["cloud"])
            led = [(recorded.action(e, t), recorded.reward(e, t), recorded.discount(e, t)) for t in range(1, length)]
            for name, expected in zip(("action", "reward", "discount"), zip(*led, strict=True), strict=False):  # type: ignore[assignment]
                np.testing.assert_array_equal(f[name][rows][:-1], expected)
            assert not f["action"][rows][-1].any() and f["reward"][rows][-1] == 0 == f["discount"][rows][-1]
            assert f["is_first"][rows].tolist() == [t == 0 for t in range(length)]
            assert f["is_last"][rows].tolist() == [t == length - 1 for t in range(length)]
            ended = recorded.discount(e, length - 1) == 0
            assert f["is_terminal"][rows].tolist() == [t == length - 1 and ended for t in range(length)]
            for t, row in enumerate(range(rows.start, rows.stop)):
                of_step = recorded.step_metadata(e, t)
                assert f["text"].asstr()[row] == of_step["text"]
                assert f["count"][row] == of_step["count"] and f["lucky"][row] == of_step["lucky"]
            of_episode = recorded.episode_metadata(e)
            assert f["episodes/metadata/task"].asstr()[e] == of_episode["task"]
            assert f["episodes/metadata/success"][e] == of_episode["success"]
            np.testing.assert_array_equal(f["episodes/metadata/scores"][e], of_episode["scores"])
        environment = json.loads(f.attrs["environment"])
        assert environment["robot"] == "arm" and environment["limits"] == [-1.0, "Infinity"]
        assert environment["environment_specs"]["action_spec"]["shape"] == [2]
        assert json.loads(f.attrs["sources"])[0]["format"] == "envlogger"


def test_bytes_and_lists_of_text_are_kept():
    steps = [recorded.step_metadata(e, t) for e in range(recorded.EPISODES) for t in range(recorded.length(e))]
    found = contents(VERSIONS / "1.2")
    assert found["raw"].tolist() == [step["raw"] for step in steps]
    assert found["names"].tolist() == [name.encode() for step in steps for name in step["names"]]


def test_logs_of_different_versions_stitch(tmp_path):
    file = kabuki_rlds.convert([VERSIONS / "1.0.0", VERSIONS / "1.3"], tmp_path / "out.hdf5").path
    with h5py.File(file) as f:
        assert f["episodes/source"][:].tolist() == [0] * 4 + [1] * 4
        half = len(f["reward"]) // 2
        np.testing.assert_array_equal(f["observation/joints"][:half], f["observation/joints"][half:])


def test_many_logs_under_one_root_are_one_source_in_order(tmp_path):
    for actor in (2, 10, 1):
        shutil.copytree(VERSIONS / "1.2", tmp_path / "run" / f"actor_{actor}")
    with h5py.File(convert(tmp_path / "run", tmp_path)) as f:
        sources = [Path(origin["path"]).name for origin in json.loads(f.attrs["sources"])]
        assert sources == ["actor_1", "actor_2", "actor_10"]
        assert f["episodes/source"][:].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_logs_that_differ_are_refused_by_field_and_place(tmp_path):
    shutil.copytree(ACME, tmp_path / "run" / "a")
    shutil.copytree(VERSIONS / "1.2", tmp_path / "run" / "b")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"run/b/.*steps.riegeli: episode 0, step 0: field '.*'"):
        convert(tmp_path / "run", tmp_path)
    assert not (tmp_path / "out.hdf5").exists()


def test_a_folder_without_logs_is_refused(tmp_path):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"holds no TFDS dataset .*no EnvLogger log and no HDF5 file"):
        convert(tmp_path / "empty", tmp_path)


def test_the_acme_run_has_its_learning_curve(tmp_path):
    file = convert(ACME, tmp_path)
    assert kabuki_rlds.validate(file) == []
    with h5py.File(file) as f:
        returns = np.array([f["reward"][rows].sum() for rows in episodes_of(f)])
        assert len(returns) == 300 and set(returns) == {-1.0, 1.0}
        assert returns[-100:].mean() > returns[:100].mean() + 0.5  # It learned.
        np.testing.assert_array_equal(f["episodes/metadata/caught"][:], returns == 1)
        assert f["episodes/metadata/episode"][:].tolist() == list(range(1, 301))
        # The ball falls a row a step.
        boards = f["observation"][episodes_of(f)[7]]
        assert [int(board.any(axis=1).argmax()) for board in boards] == list(range(10))


# --- whole logs, judged by EnvLogger's own reader ---


def dm_environment(episodes: list[list[Any]]) -> Any:
    """A dm_env environment that plays back `episodes`: lists of (observation, reward, discount)."""
    import dm_env
    from dm_env import specs

    class Playback(dm_env.Environment):
        episode = -1

        def reset(self) -> Any:
            self.episode, self.t = self.episode + 1, 0
            return dm_env.restart(episodes[self.episode][0][0])

        def step(self, action: Any) -> Any:
            self.t += 1
            observation, reward, discount = episodes[self.episode][self.t]
            last = self.t == len(episodes[self.episode]) - 1
            return dm_env.TimeStep(dm_env.StepType.LAST if last else dm_env.StepType.MID, reward, discount, observation)

        def observation_spec(self) -> Any:
            value = np.asarray(episodes[0][0][0])
            return specs.Array(value.shape, value.dtype)

        def action_spec(self) -> Any:
            return specs.Array((), np.int32)

    return Playback()


def record(folder: Path, episodes: list[list[Any]], **options: Any) -> Path:
    import envlogger

    folder.mkdir(parents=True)
    with envlogger.EnvLogger(dm_environment(episodes), data_directory=str(folder), **options) as logged:
        for episode in episodes:
            logged.reset()
            for t in range(1, len(episode)):
                logged.step(np.int32(t))
    return folder


def noise(count: int, lengths: list[int], size: int = 40) -> list[list[Any]]:
    """Episodes of floats that do not compress."""
    random = np.random.default_rng(count)
    return [
        [(random.normal(size=size), random.normal(), 1.0) for _ in range(lengths[e % len(lengths)])]
        for e in range(count)
    ]


def check_by_reader(log: Path, file: Path) -> None:
    """Holds a file against EnvLogger's reader: a plain loop over its steps."""
    from envlogger import reader

    with reader.Reader(str(log)) as steps, h5py.File(file) as f:
        episodes = episodes_of(f)
        assert len(steps.episodes) == len(episodes)
        for episode, rows in zip(steps.episodes, episodes, strict=True):
            whole = list(episode)
            assert len(whole) == rows.stop - rows.start
            observations = np.stack([step.timestep.observation for step in whole])
            assert observations.dtype == f["observation"].dtype
            np.testing.assert_array_equal(f["observation"][rows], observations)
            after = whole[1:]
            np.testing.assert_array_equal(f["reward"][rows][:-1], [step.timestep.reward for step in after])
            np.testing.assert_array_equal(f["discount"][rows][:-1], [step.timestep.discount for step in after])
            np.testing.assert_array_equal(f["action"][rows][:-1], [step.action for step in after])


@pytest.mark.reference
@pytest.mark.parametrize(
    "writer_options",
    [
        "transpose,brotli:6,chunk_size:1M",
        "transpose,zstd:3,chunk_size:20k",
        "transpose,uncompressed,chunk_size:200k",
        "transpose,snappy,bucket_fraction:0.1",
        "brotli:2",
        "zstd:1,chunk_size:3k",
        "snappy",
        "uncompressed,chunk_size:100k",
    ],
)
def test_every_way_to_write_is_read(writer_options, tmp_path):
    log = record(tmp_path / "log", noise(30, [2, 40, 17]), writer_options=writer_options, max_episodes_per_file=13)
    check_by_reader(log, convert(log, tmp_path))


@pytest.mark.reference
def test_the_acme_log_reads_as_its_own_reader_has_it(tmp_path):
    check_by_reader(ACME, convert(ACME, tmp_path))


@pytest.mark.reference
def test_steps_whose_bytes_have_no_two_alike_are_read(tmp_path):
    """C++ writes the keys of a dict in any order, and numbers and text are as long as they are."""

    def varied(timestep: Any, action: Any, env: Any) -> Any:
        random = np.random.default_rng(1000 * env.episode + env.t)
        texts = {f"text_{i}": "x" * int(random.integers(20)) for i in range(3)}
        numbers = {f"numbers_{i}": random.integers(-10, 10, 3) ** int(random.integers(1, 18)) for i in range(3)}
        return texts | {"deep": numbers | {"count": int(random.integers(2**40)) >> int(random.integers(40))}}

    log = record(tmp_path / "log", noise(12, [60, 3], size=2), step_fn=varied)
    from envlogger import reader

    with reader.Reader(str(log)) as steps, h5py.File(convert(log, tmp_path)) as f:
        assert len(steps.steps) == len(f["reward"])
        for row, step in enumerate(steps.steps):
            for i in range(3):
                assert f[f"text_{i}"].asstr()[row] == step.custom_data[f"text_{i}"]
                assert f[f"deep/numbers_{i}"][row].tolist() == step.custom_data["deep"][f"numbers_{i}"].tolist()
            assert f["deep/count"][row] == step.custom_data["deep"]["count"]


_leaf = st.one_of(
    st.floats(allow_nan=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from(["float32", "float64", "int8", "uint16", "int32", "int64", "uint64", "bool"]).flatmap(
        lambda name: st.lists(st.integers(0, 1), min_size=1, max_size=3).map(lambda values: np.array(values, name))
    ),
)
_message = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=3).map(tuple),
    ),
    max_leaves=6,
)


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, dict):
        return {p: leaf for key, inner in value.items() for p, leaf in flat(inner, (*path, key)).items()}
    if isinstance(value, tuple):
        return {p: leaf for i, inner in enumerate(value) for p, leaf in flat(inner, (*path, str(i))).items()}
    return {path: value}


@pytest.mark.reference
@given(st.lists(_message, min_size=1, max_size=4))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_messages_are_what_envloggers_codec_makes_of_them(values):
    from envlogger.converters import codec

    from kabuki_rlds.formats.envlogger import messages, protobuf, specs

    texts = [codec.encode(value).SerializeToString() for value in values]
    ends = np.cumsum([len(text) for text in texts])
    starts = ends - [len(text) for text in texts]
    data = np.frombuffer(b"".join(texts), np.uint8)
    found = messages.leaves(protobuf.Spans(data, np.arange(len(texts)), starts, ends))
    for row, value in enumerate(values):
        decoded = codec.decode(codec.encode(value))
        want = {path: leaf for path, leaf in flat(decoded).items() if leaf is not None}
        got = {}
        for path, pieces in found.items():
            for piece in pieces:
                if piece.values is not None and row in piece.rows:
                    got[path] = piece.values[piece.rows.tolist().index(row)]
        assert got.keys() == want.keys()
        for path, leaf in want.items():
            if isinstance(leaf, (str, bytes)):
                assert got[path] == (leaf.encode() if isinstance(leaf, str) else leaf)
                continue
            expected = np.asarray(leaf)
            assert got[path].dtype == expected.dtype
            np.testing.assert_array_equal(got[path], expected)
        whole = specs.decode(texts[row])
        assert flat(whole).keys() == flat(decoded).keys()


@pytest.mark.reference
def test_a_log_has_the_fields_that_envloggers_tfds_backend_gives(tmp_path):
    import envlogger
    import tensorflow_datasets as tfds
    from envlogger.backends import tfds_backend_writer

    exact = {"dtype": np.float64, "encoding": "zlib"}
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="noise",
        observation_info=tfds.features.Tensor(shape=(4,), **exact),
        action_info=np.int32,
        reward_info=tfds.features.Tensor(shape=(), **exact),
        discount_info=tfds.features.Tensor(shape=(), **exact),
        step_metadata_info={"t": np.int64},
        episode_metadata_info={"seed": np.int64},
    )
    played = noise(5, [4, 3], size=4)
    functions = {
        "step_fn": lambda timestep, action, env: {"t": np.int64(env.t)},
        "episode_fn": lambda timestep, action, env: {"seed": np.int64(env.episode)},
    }
    dataset = tmp_path / "noise" / "1.0.0"
    dataset.mkdir(parents=True)
    backend = tfds_backend_writer.TFDSBackendWriter(data_directory=str(dataset), ds_config=config, version="1.0.0")
    with envlogger.EnvLogger(dm_environment(played), backend=backend, **functions) as logged:
        for episode in played:
            logged.reset()
            for t in range(1, len(episode)):
                logged.step(np.int32(t))
    log = record(tmp_path / "log", played, **functions)
    theirs = kabuki_rlds.convert(dataset, tmp_path / "theirs.hdf5").path
    with h5py.File(theirs) as a, h5py.File(convert(log, tmp_path)) as b:
        paths: list[str] = []
        a.visititems(lambda name, item: paths.append(name) if isinstance(item, h5py.Dataset) else None)
        assert "t" in paths and "episodes/metadata/seed" in paths
        for path in paths:
            assert a[path].dtype == b[path].dtype, path
            np.testing.assert_array_equal(a[path][:], b[path][:], path)


# --- what varies ---


@pytest.mark.reference
@pytest.mark.parametrize("shape", [(3_000_000_000,), (1 << 20, 1 << 20)])
def test_size_of_a_field_without_values_is_not_taken_from_the_spec(shape, tmp_path, caplog):
    import dm_env
    import envlogger
    from dm_env import specs

    class Lacking(dm_env.Environment):
        def reset(self) -> Any:
            return dm_env.restart({"state": np.zeros(3), "image": None})

        def step(self, action: Any) -> Any:
            return dm_env.termination(1.0, {"state": np.ones(3), "image": None})

        def observation_spec(self) -> Any:
            return {"state": specs.Array((3,), np.float64), "image": specs.Array(shape, np.float32)}

        def action_spec(self) -> Any:
            return specs.Array((), np.int32)

    (tmp_path / "log").mkdir()
    with envlogger.EnvLogger(Lacking(), data_directory=str(tmp_path / "log")) as logged:
        logged.reset()
        logged.step(np.int32(0))
    with h5py.File(convert(tmp_path / "log", tmp_path)) as file:
        assert list(file["observation"]) == ["state"]
    assert "field 'observation/image' is left out, because it has no value in any row" in caplog.text


@pytest.mark.reference
def test_shapes_that_no_spec_says_vary_from_step_to_step(tmp_path):
    def seen(timestep: Any, action: Any, env: Any) -> Any:
        # The first megabytes of steps are alike.
        count = 2 if env.episode < 8 else env.t % 3
        return {"seen": np.full((count, 2), env.t, np.float32)}

    log = record(tmp_path / "log", noise(10, [3000], size=1), step_fn=seen)
    with h5py.File(convert(log, tmp_path)) as f:
        for e, rows in enumerate(episodes_of(f)):
            for t, value in enumerate(f["seen"][rows]):
                assert value.tolist() == [t] * 2 * (2 if e < 8 else t % 3)


@pytest.mark.reference
def test_arrays_that_differ_from_log_to_log_are_an_error(tmp_path):
    for name, size in (("a", 7), ("b", 6)):
        record(
            tmp_path / "runs" / name,
            noise(2, [3], size=1),
            step_fn=lambda timestep, action, env, size=size: {"joints": np.zeros(size)},
        )
    with pytest.raises(
        kabuki_rlds.KabukiError,
        match=r"step field 'joints' is float64 \(7,\) in .*/a/.*: episode 0, step 0, but float64 \(6,\) in .*/b/",
    ):
        convert(tmp_path / "runs", tmp_path)


@pytest.mark.reference
def test_arrays_that_differ_from_episode_to_episode_are_an_error(tmp_path):
    log = record(
        tmp_path / "log",
        noise(3, [4], size=1),
        step_fn=lambda timestep, action, env: {"joints": np.zeros((2, 7 - env.episode // 2))},
    )
    with pytest.raises(
        kabuki_rlds.KabukiError,
        match=r"'joints' is float64 \(2, 7\) in .*, but float64 \(2, 6\) in .*episode 2, step 0",
    ):
        convert(log, tmp_path)


@pytest.mark.reference
def test_images_that_differ_from_episode_to_episode_are_joined(tmp_path, caplog):
    log = record(
        tmp_path / "log",
        noise(2, [3], size=1),
        step_fn=lambda timestep, action, env: {"camera": np.full((40 + env.episode, 33, 3), env.t, np.uint8)},
    )
    with h5py.File(convert(log, tmp_path)) as f:
        # One dimension varies, so that the length of a row tells it.
        assert f["camera"].attrs["shape"].tolist() == [-1, 33, 3]
        for e, rows in enumerate(episodes_of(f)):
            for t, row in enumerate(f["camera"][rows]):
                assert np.array_equal(row, np.full((40 + e) * 33 * 3, t, np.uint8))
    assert "'camera' is uint8 (40, 33, 3) in" in caplog.text and "rows of different shapes" in caplog.text


@pytest.mark.reference
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.float32(1), r"episode 1, step 2: field 'x' is float32, where elsewhere it is float64"),
        (
            np.zeros(2),
            r"step field 'x' is float64 in .*: episode 0, step 0, but float64 \(2,\) in .*: episode 1, step 2",
        ),
        ("text", r"episode 1, step 2: field 'x' is text, where elsewhere it is float64"),
        (None, r"episode 1, step 2: field 'x' has no value"),
    ],
)
def test_a_step_of_another_type_is_named(wrong, message, tmp_path):
    log = record(
        tmp_path / "log",
        noise(3, [4], size=1),
        step_fn=lambda timestep, action, env: {"x": wrong if (env.episode, env.t) == (1, 2) else 1.5},
    )
    with pytest.raises(kabuki_rlds.KabukiError, match=message):
        convert(log, tmp_path)


@pytest.mark.reference
def test_metadata_that_some_episodes_lack_is_padding_and_said(tmp_path, caplog):
    log = record(
        tmp_path / "log",
        noise(4, [3], size=1),
        episode_fn=lambda timestep, action, env: {"score": env.episode + 1} if env.episode % 2 else None,
    )
    with h5py.File(convert(log, tmp_path)) as f:
        assert f["episodes/metadata/score"][:].tolist() == [0, 2, 0, 4]
    assert "2 of 4 episodes have no 'score'" in caplog.text


# --- processes that were killed ---

_AGENT = """
    import sys
    import numpy as np
    sys.path.insert(0, {root!r})
    from tests.formats.envlogger.test_source import dm_environment, noise
    import envlogger
    from envlogger.backends import schedulers

    played = noise(2000, [25], size=64)
    logged = envlogger.EnvLogger(
        dm_environment(played),
        data_directory={log!r},
        max_episodes_per_file=300,
        writer_options={options!r},
        flush_scheduler=schedulers.BernoulliStepScheduler({flush}, seed=0),
        episode_fn=lambda timestep, action, env: {{"number": np.int64(env.episode)}},
    )
    steps = 0
    for episode in played:
        logged.reset()
        for t in range(1, len(episode)):
            logged.step(np.int32(t))
        steps += len(episode)
        print(steps, flush=True)
"""


@pytest.mark.reference
@pytest.mark.parametrize(
    ("after", "options", "flush"),
    [
        (1_000, "transpose,brotli:6,chunk_size:100k", 0.0),
        (9_000, "transpose,brotli:6,chunk_size:1M", 0.0),
        (12_000, "transpose,brotli:1,chunk_size:50k", 1 / 1000),
        (200, "transpose,brotli:1,chunk_size:50k", 1 / 10),
        (1_500, "zstd:1,chunk_size:10k", 0.0),
    ],
)
def test_what_a_killed_process_left_is_recovered(after, options, flush, tmp_path, caplog):
    log = tmp_path / "log"
    log.mkdir()
    root = str(ROOT)
    code = textwrap.dedent(_AGENT).format(root=root, log=str(log), options=options, flush=flush)
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert agent.stdout is not None
    for line in agent.stdout:
        if int(line) >= after:
            agent.send_signal(signal.SIGKILL)
            break
    agent.communicate()
    file = convert(log, tmp_path)
    assert kabuki_rlds.validate(file) == []
    assert "as when a process is killed" in caplog.text
    played = noise(2000, [25], size=64)
    with h5py.File(file) as f:
        episodes = episodes_of(f)
        # What the log's writer still held is lost with the process: at most a chunk, and what its file held back.
        chunk = re.search(r"chunk_size:(\d+)([kM])", options)
        assert chunk
        held_back = int(chunk[1]) * {"k": 1 << 10, "M": 1 << 20}[chunk[2]] + 3 * 65536
        assert len(f["reward"]) > after - held_back / (64 * 8) - 2 * 25
        assert len(episodes) > 1
        for e, rows in enumerate(episodes):
            length = rows.stop - rows.start
            assert length == 25 or e == len(episodes) - 1
            np.testing.assert_array_equal(f["observation"][rows], [step[0] for step in played[e][:length]])
            np.testing.assert_array_equal(f["reward"][rows][:-1], [step[1] for step in played[e][1:length]])
            assert f["is_last"][rows.stop - 1] and not f["is_terminal"][rows.stop - 1]
        if "episodes/metadata/number" in f:
            numbers = f["episodes/metadata/number"][:]
            assert all(number in (e, 0) for e, number in enumerate(numbers.tolist()))


# --- damage ---


@pytest.fixture(scope="module")
def big_log(tmp_path_factory) -> Callable[[Path], Path]:
    """Copies a log of 3 shards, of 14 chunks each, of which many cross the blocks of the file."""
    pytest.importorskip("envlogger")
    log = record(
        tmp_path_factory.mktemp("big") / "log",
        noise(60, [30, 1, 50], size=100),
        writer_options="transpose,brotli:1,chunk_size:30k",
        max_episodes_per_file=20,
        episode_fn=lambda timestep, action, env: {"number": np.int64(env.episode)},
    )
    return lambda to: Path(shutil.copytree(log, to))


def check_episodes(source: EnvLoggerSource) -> list[int]:
    """The numbers of the episodes that a source gives of `big_log`; they are what they were, and all there."""
    played = noise(60, [30, 1, 50], size=100)
    blocks = list(source.blocks())
    numbers = np.concatenate([block.metadata["number"] for block in blocks]).tolist()
    observations = np.concatenate([block.steps["observation"] for block in blocks])
    expected = [step[0] for number in numbers for step in played[number]]
    assert len(observations) == len(expected)
    np.testing.assert_array_equal(observations, expected)
    assert source.num_episodes == len(numbers) and source.num_skipped == 60 - len(numbers)
    return numbers


def steps_files(log: Path) -> list[Path]:
    return sorted(log.glob("*/steps.riegeli"))


@pytest.mark.reference
def test_a_damaged_byte_costs_what_is_in_its_chunk(big_log, tmp_path):
    log = big_log(tmp_path / "log")
    path = steps_files(log)[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(kabuki_rlds.KabukiError) as e:
        convert(log, tmp_path)
    assert not (tmp_path / "out.hdf5").exists()
    found = re.search(
        r"steps.riegeli: .*damaged: ([\d,]+) of \d+ steps are lost, and (\d+) of 20 episodes", str(e.value)
    )
    assert found and path.parent.name in str(e.value)
    source = EnvLoggerSource(log, skip_bad=True)
    left = check_episodes(source)
    assert len(left) == 60 - int(found[2]) and 0 < int(found[2]) < 20
    assert set(range(20)) | set(range(40, 60)) <= set(left)


@pytest.mark.reference
@pytest.mark.parametrize("part", ["data", "header", "block header"])
def test_damage_anywhere_is_found_and_costs_no_more_than_the_chunks_it_is_in(part, big_log, tmp_path):
    from kabuki_rlds.formats.riegeli import chunks

    log = big_log(tmp_path / "log")
    path = steps_files(log)[0]
    header = [h for h in chunks.headers(path) if isinstance(h, chunks.ChunkHeader)][5]
    data = bytearray(path.read_bytes())
    position = {"data": header.begin + 60, "header": header.begin + 20, "block header": 65536 + 3}[part]
    data[position] ^= 0x40
    path.write_bytes(data)
    source = EnvLoggerSource(log, skip_bad=True)
    left = check_episodes(source)
    assert len(left) == 60 if part == "block header" else 50 <= len(left) < 60


@pytest.mark.reference
def test_a_log_cut_short_anywhere_gives_its_whole_episodes_or_says_why_not(big_log, tmp_path):
    log = big_log(tmp_path / "log")
    path = steps_files(log)[2]
    data = path.read_bytes()
    before = 61
    for size in np.linspace(len(data) - 1, 0, 12).astype(int).tolist():
        path.write_bytes(data[:size])
        with pytest.raises(kabuki_rlds.KabukiError, match=r"of \d+ steps are lost, and \d+ of 20 episodes"):
            EnvLoggerSource(log)
        left = check_episodes(EnvLoggerSource(log, skip_bad=True))
        assert 40 <= len(left) <= before and left == list(range(len(left)))
        before = len(left)
    assert before == 40


@pytest.mark.reference
def test_without_its_indices_a_log_is_read_by_its_steps(big_log, tmp_path):
    log = big_log(tmp_path / "log")
    for name in ("step_offsets", "episode_index"):
        for path in log.glob(f"*/{name}.riegeli"):
            path.unlink()
    assert check_episodes(EnvLoggerSource(log)) == list(range(60))


@pytest.mark.reference
@pytest.mark.parametrize("name", ["step_offsets", "episode_index"])
def test_a_damaged_index_costs_nothing(name, big_log, tmp_path):
    log = big_log(tmp_path / "log")
    path = next(log.glob(f"*/{name}.riegeli"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    assert check_episodes(EnvLoggerSource(log)) == list(range(60))


def test_no_byte_of_a_small_log_can_be_damaged_unseen(tmp_path):
    whole = contents(VERSIONS / "1.2")
    shard = sorted((VERSIONS / "1.2").glob("*/steps.riegeli"))[0].parent.name
    log = Path(shutil.copytree(VERSIONS / "1.2", tmp_path / "log"))
    path = log / shard / "steps.riegeli"
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 97)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = contents(log)
        except kabuki_rlds.KabukiError as e:
            assert str(log) in str(e)
        else:
            # A byte that holds nothing: a hash of a block, or padding.
            assert found.keys() == whole.keys()
            for name in whole:
                np.testing.assert_array_equal(found[name], whole[name])


def contents(log: Path) -> dict[str, np.ndarray]:
    blocks = list(EnvLoggerSource(log).blocks())
    found: dict[str, np.ndarray] = {}
    for name in blocks[0].steps:
        columns = [block.steps[name] for block in blocks]
        found[name] = np.concatenate([c if isinstance(c, np.ndarray) else c.values for c in columns])
    return found


def test_only_numpy_is_needed_to_read_a_log(tmp_path):
    """Neither EnvLogger, which exists for few Pythons, nor TensorFlow, which takes seconds to import."""
    code = f"""
        import sys
        import kabuki_rlds
        kabuki_rlds.convert({str(ACME)!r}, {str(tmp_path / "out.hdf5")!r})
        assert not {{"envlogger", "tensorflow", "google.protobuf"}} & sys.modules.keys()
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_a_log_is_one_split(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"1.2: has no split 'test'; the splits are train \("):
        kabuki_rlds.convert(VERSIONS / "1.2", tmp_path / "out.hdf5", split="test")
