"""Minari's datasets: what `minari` iterates is what is converted, whichever of its storages they are in."""

import json

import h5py
import numpy as np
import pytest

from kabuki_rlds import build, convert, load_transitions, validate
from kabuki_rlds.cli.main import main

minari = pytest.importorskip("minari", reason="judges its own datasets")
spaces = pytest.importorskip("gymnasium").spaces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of what a dataset should say of its author

NUMBERS = [np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
IMAGE = spaces.Box(0, 255, (40, 48, 3), np.uint8)


def _box(dtype, shape=(3,)):
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return spaces.Box(limits.min, limits.max, shape, dtype)


OBSERVATIONS = spaces.Dict(
    {
        "boxes": spaces.Dict({dtype.name: _box(dtype) for dtype in NUMBERS}),
        "infinite": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        "number": spaces.Box(-1, 1, (), np.float32),
        "truth": spaces.Box(0, 1, (2,), np.bool_),
        "discrete": spaces.Discrete(5, start=-2),
        "binary": spaces.MultiBinary(4),
        "binary of two axes": spaces.MultiBinary([2, 3]),
        "multi": spaces.MultiDiscrete([3, 4]),
        "multi of two axes": spaces.MultiDiscrete([[3, 4], [5, 6]]),
        "text": spaces.Text(20, charset="abcé "),
        "pair": spaces.Tuple((spaces.Discrete(3), spaces.Dict({"a": spaces.Box(0, 1, (1,), np.float32)}))),
        "image": IMAGE,
        "gray": spaces.Box(0, 255, (33, 32), np.uint8),
    }
)
ACTIONS = spaces.Dict({"arm": spaces.Box(-1, 1, (7,), np.float32), "grip": spaces.Discrete(2), "say": spaces.Text(5)})


def _values(space, rng):
    """A value of a space, also such as `sample` never gives."""
    if isinstance(space, spaces.Dict):
        return {name: _values(inner, rng) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_values(inner, rng) for inner in space.spaces)
    if isinstance(space, spaces.Box) and space.dtype != bool:
        raw = rng.integers(0, 256, (*space.shape, space.dtype.itemsize), np.uint8)
        value = raw.view(space.dtype).reshape(space.shape)
        return np.where(np.isfinite(value), value, 1).astype(space.dtype) if space.dtype.kind == "f" else value
    return space.sample()


def _stacked(values):
    """Values of one space, one a step, as Minari's buffers have them: columns in dicts and tuples."""
    if isinstance(values[0], dict):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(_stacked(list(part)) for part in zip(*values, strict=True))
    return list(values) if isinstance(values[0], str) else np.array(values)


def _make(name, observations, actions, data_format, *, jpeg=False, lengths=(4, 1, 12, 3), infos=True):
    """A dataset by Minari's own writer; each second episode is cut short."""
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    for seed, space in enumerate((observations, actions)):
        space.seed(seed)
    buffers = []
    for number, length in enumerate(lengths):
        ends = np.arange(length) == length - 1
        said = {
            # From its Arrow storage Minari reads no arrays of scalars, and no shapes of nested arrays.
            "success": [i > 1 for i in range(length + 1)],
            "grid": rng.random((length + 1, 2, 2)),
            "pose": {"x": rng.random((length + 1, 2)), "n": [int(i) for i in range(length + 1)]},
            "names": [f"é {i}" for i in range(length + 1)],
        }
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number + 5 if number else None,
                options={"goal": np.array([1.0, number]), "task": {"name": "door"}} if number != 2 else None,
                observations=_stacked([_values(observations, rng) for _ in range(length + 1)]),
                actions=_stacked([_values(actions, rng) for _ in range(length)]),
                rewards=np.arange(length) / 3,
                terminations=ends & (number % 2 == 0),
                truncations=ends & (number % 2 == 1),
                infos=said if infos else None,
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id=name,
        buffer=buffers,
        observation_space=observations,
        action_space=actions,
        data_format=data_format,
        jpeg_encoding=jpeg,
        description="made by a test",
    )


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def _leaves(value, path=""):
    if isinstance(value, np.ndarray) and value.dtype == object and isinstance(value[0], dict):
        # Arrow's infos come as a dict for each step.
        value = _stacked(value.tolist())
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{path}/{key}").items()}
    if isinstance(value, tuple):
        return {k: v for i, inner in enumerate(value) for k, v in _leaves(inner, f"{path}/_index_{i}").items()}
    return {path: value}


def _check(dataset, file, images=()):
    """Each value of each episode, against what Minari iterates; of JPEG `images` the decoders differ by a little."""
    assert len(file["episodes/start"]) == dataset.total_episodes
    assert len(file["reward"]) == dataset.total_steps + dataset.total_episodes
    metadata = file["episodes/metadata/attributes"]
    said = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    for number, (episode, start) in enumerate(zip(dataset.iterate_episodes(), file["episodes/start"], strict=True)):
        count = len(episode.rewards)
        rows, inner = slice(start, start + count + 1), slice(start, start + count)
        expected = {
            **{f"observation{p}": (v, rows) for p, v in _leaves(episode.observations).items()},
            **{f"action{p}": (v, inner) for p, v in _leaves(episode.actions).items()},
            **{f"infos{p}": (v, rows) for p, v in _leaves(episode.infos or {}).items()},
            "reward": (episode.rewards, inner),
            "terminations": (episode.terminations, inner),
            "truncations": (episode.truncations, inner),
        }
        for path, (values, at) in expected.items():
            got = file[path][at]
            if got.dtype == object:
                texts = [value if isinstance(value, bytes) else value.encode() for value in values]
                assert got.tolist() == texts, path
            elif path in images:
                assert np.abs(got.astype(int) - values.reshape(got.shape)).max() <= 8, path
            else:
                assert got.dtype == np.asarray(values).dtype, path
                assert got.tobytes() == np.asarray(values).tobytes(), path
                assert got.shape == np.asarray(values).shape, path
        assert file["is_terminal"][start + count] == episode.terminations[-1]
        assert file["is_last"][rows].tolist() == [False] * count + [True]
        told = {path: value for path, value in _leaves(said[number]).items() if value is not None}
        for path, value in told.items():
            stored = metadata[path[1:]][number]
            assert (stored.decode() if isinstance(stored, bytes) else stored.tolist()) == np.asarray(value).tolist()
    assert set(expected) <= set(_datasets(file))


def _datasets(file):
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


@pytest.mark.parametrize("jpeg", [False, True], ids=["raw", "jpeg"])
@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_what_minari_iterates_is_what_is_converted(tmp_path, data_format, jpeg):
    dataset = _make("lab/all-spaces-v0", OBSERVATIONS, ACTIONS, data_format, jpeg=jpeg)
    convert(tmp_path / "lab" / "all-spaces-v0", tmp_path / "k.hdf5")
    assert not validate(tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        _check(dataset, ours, ("observation/image", "observation/gray") if jpeg else ())
        assert ours["episodes/metadata/attributes/seed"][:].tolist() == [0, 6, 7, 8]
        said = json.loads(ours.attrs["environment"])
        assert said["observation_space"]["type"] == "Dict"
        assert ours.attrs["description"] == "made by a test"
        assert json.loads(ours.attrs["sources"])[0]["format"] == "minari"


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(4), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]),
     spaces.Text(9), spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32))), IMAGE],
    ids=lambda space: type(space).__name__,
)  # fmt: skip
def test_each_space_by_itself(tmp_path, data_format, space):
    actions = spaces.Discrete(3) if isinstance(space, spaces.Box) else space
    dataset = _make("one-v0", space, actions, data_format, infos=False)
    convert(tmp_path / "one-v0", tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        _check(dataset, ours)


def test_a_picture_as_an_action(tmp_path):
    dataset = _make("draw-v0", spaces.Discrete(3), IMAGE, "hdf5", jpeg=True)
    convert(tmp_path / "draw-v0", tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        _check(dataset, ours, ("action",))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_straight_to_rlds(tmp_path, data_format):
    dataset = _make("lab/door-v0", OBSERVATIONS, ACTIONS, data_format, jpeg=True)
    built = build(tmp_path / "lab" / "door-v0", tmp_path / "rlds", name="door")
    assert (built.num_episodes, built.num_steps) == (4, dataset.total_steps + 4)
    assert main(["convert", str(built.path), str(tmp_path / "k.hdf5")]) == 0
    with h5py.File(tmp_path / "k.hdf5") as ours:
        _check(dataset, ours, ("observation/image", "observation/gray"))
    (batch,) = load_transitions(tmp_path / "k.hdf5", 100, as_numpy=True)
    terminal = np.concatenate([episode.terminations for episode in dataset])
    np.testing.assert_array_equal(batch["discount"] == 0, terminal)


def test_a_folder_of_several_is_one_dataset(tmp_path):
    for name, data_format in (("a-v0", "hdf5"), ("b-v0", "parquet"), ("c-v0", "arrow")):
        _make(f"lab/{name}", spaces.Discrete(3), spaces.Discrete(3), data_format)
    assert convert(tmp_path / "lab", tmp_path / "k.hdf5").num_episodes == 12
