"""Minari's datasets: what `minari` iterates is what is converted."""

import json

import h5py
import numpy as np
import pytest

from kabuki_rlds import KabukiError, convert, validate

minari = pytest.importorskip("minari", reason="judges its own datasets")
spaces = pytest.importorskip("gymnasium").spaces

OBSERVATIONS = spaces.Dict(
    {
        "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "wide": spaces.Box(-1, 1, (2, 2), np.float64),
        "discrete": spaces.Discrete(5),
        "binary": spaces.MultiBinary(4),
        "multi": spaces.MultiDiscrete([3, 4]),
        "text": spaces.Text(20, charset="abcé "),
        "pair": spaces.Tuple((spaces.Discrete(3), spaces.Dict({"a": spaces.Box(0, 1, (1,), np.float32)}))),
        "image": spaces.Box(0, 255, (40, 48, 3), np.uint8),
    }
)


def _stacked(values):
    """Values of one space, one a step, as Minari's buffers have them: columns in dicts and tuples."""
    if isinstance(values[0], dict):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(_stacked(list(part)) for part in zip(*values, strict=True))
    return list(values) if isinstance(values[0], str) else np.array(values)


@pytest.fixture(name="dataset", params=[False, True], ids=["raw", "jpeg"])
def _dataset(request, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from minari.data_collector import EpisodeBuffer

    OBSERVATIONS.seed(0)
    actions = spaces.Dict({"arm": spaces.Box(-1, 1, (7,), np.float32), "grip": spaces.Discrete(2)})
    actions.seed(1)
    buffers = []
    for number, (length, terminated) in enumerate([(4, True), (1, False), (12, True), (3, False)]):
        ends = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number + 5 if number else None,
                options={"goal": np.array([1.0, number])},
                observations=_stacked([OBSERVATIONS.sample() for _ in range(length + 1)]),
                actions=_stacked([actions.sample() for _ in range(length)]),
                rewards=np.arange(length) / 3,
                terminations=ends & terminated,
                truncations=ends & (not terminated),
                infos={
                    "success": np.arange(length + 1) > 1,
                    "pose": {"x": np.random.default_rng(0).random((length + 1, 2))},
                },
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id="lab/all-spaces-v0",
        buffer=buffers,
        observation_space=OBSERVATIONS,
        action_space=actions,
        data_format="hdf5",
        jpeg_encoding=request.param,
        description="every space",
    )


def _leaves(value, path=""):
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{path}/{key}").items()}
    if isinstance(value, tuple):
        return {k: v for i, inner in enumerate(value) for k, v in _leaves(inner, f"{path}/_index_{i}").items()}
    return {path: value}


def test_what_minari_iterates_is_what_is_converted(dataset, tmp_path, request):
    folder = tmp_path / "lab" / "all-spaces-v0"
    is_jpeg = "jpeg" in request.node.name
    result = convert(folder, tmp_path / "k.hdf5")
    assert result.episodes == dataset.total_episodes
    assert result.steps == dataset.total_steps + dataset.total_episodes
    assert not validate(tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        starts = ours["episodes/start"][:]
        for episode, start in zip(dataset.iterate_episodes(), starts, strict=True):
            count = len(episode.rewards)
            rows, inner = slice(start, start + count + 1), slice(start, start + count)
            expected = {
                **{f"observation{p}": (v, rows) for p, v in _leaves(episode.observations).items()},
                **{f"action{p}": (v, inner) for p, v in _leaves(episode.actions).items()},
                **{f"infos{p}": (v, rows) for p, v in _leaves(episode.infos).items()},
                "reward": (episode.rewards, inner),
                "terminations": (episode.terminations, inner),
                "truncations": (episode.truncations, inner),
            }
            for path, (values, at) in expected.items():
                got = ours[path].asstr()[at] if path.endswith("/text") else ours[path][at]
                if path == "observation/image" and is_jpeg:
                    # Decoders of JPEG differ by a little.
                    assert np.abs(got.astype(int) - values).max() <= 8
                else:
                    np.testing.assert_array_equal(got, values, err_msg=path)
            assert ours["is_terminal"][start + count] == episode.terminations[-1]
            assert ours["is_last"][rows].tolist() == [False] * count + [True]
        assert ours["episodes/metadata/attributes/id"][:].tolist() == [0, 1, 2, 3]
        assert ours["episodes/metadata/attributes/seed"][:].tolist() == [0, 6, 7, 8]
        said = json.loads(ours.attrs["environment"])
        assert said["observation_space"]["type"] == "Dict"
        assert ours.attrs["description"] == "every space"


def test_episodes_that_are_missing_are_an_error(dataset, tmp_path):
    with h5py.File(tmp_path / "lab" / "all-spaces-v0" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    with pytest.raises(KabukiError, match=r"metadata.json says total_episodes 4, but there are 3"):
        convert(tmp_path / "lab" / "all-spaces-v0", tmp_path / "k.hdf5")
