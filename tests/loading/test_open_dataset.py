"""`kabuki_rlds.open`: random access to the episodes of any source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from tests import handmade, layout_files


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bytes) or isinstance(b, bytes):
        return a == b
    if isinstance(a, list) or isinstance(b, list):
        return len(a) == len(b) and all(map(_same, list(a), list(b)))
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == object or b.dtype == object:
        return len(a) == len(b) and all(map(_same, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["plain", "array_record", "every_kind", "oxe_style", "no_steps"])
def test_rlds_episodes_equal_those_of_tfds(name: str, dataset: Any, expected: Any) -> None:
    want = expected(name)
    with kabuki_rlds.open(dataset(name)) as opened:
        assert len(opened) == len(want.lengths)
        starts = np.cumsum([0, *want.lengths])
        for i in (0, len(opened) - 1, len(opened) // 2):
            episode = opened[i]
            assert episode.num_steps == want.lengths[i]
            steps, rows = _flat(episode.steps), slice(starts[i], starts[i] + want.lengths[i])
            for path, column in want.steps.items():
                got = steps.get(path, np.zeros(0))
                assert all(_same(a, b) for a, b in zip(got, column[rows], strict=True)), path
            metadata = _flat(episode.metadata)
            assert all(_same(metadata[path], column[i]) for path, column in want.episodes.items())


def _sources(tmp_path: Path, dataset: Any) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    return {
        "rlds": dataset("plain"),
        "kabuki": kabuki_rlds.convert(dataset("oxe_style"), tmp_path / "encoded.hdf5", images="encoded").path,
        "by hand": handmade.write(tmp_path / "hand.hdf5", handmade.fields()),
        "robomimic": layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 3: 5, 12: 2}, success=[0]),
        "minari": layout_files.minari(tmp_path / "main_data.hdf5", [4, 3, 6]),
        "d4rl": layout_files.d4rl(
            tmp_path / "d.hdf5",
            observations=rng.normal(size=(30, 3)),
            terminals=np.arange(30) == 12,
            timeouts=np.isin(np.arange(30), [20, 29]),
        ),
    }


@pytest.mark.parametrize("kind", ["rlds", "kabuki", "by hand", "robomimic", "minari", "d4rl"])
def test_indexing_and_iterating_give_the_same_episodes(kind: str, tmp_path: Path, dataset: Any) -> None:
    with kabuki_rlds.open(_sources(tmp_path, dataset)[kind]) as opened:
        every = list(opened)
        assert len(every) == len(opened) >= 3
        for i, episode in enumerate(every):
            for same in (opened[i], opened[i - len(every)], opened[np.int64(i)]):  # type: ignore[call-overload]
                assert same.num_steps == episode.num_steps
                mine, other = _flat(same.steps), _flat(episode.steps)
                assert mine.keys() == other.keys() and all(_same(mine[path], other[path]) for path in other)
                assert _flat(same.metadata).keys() == _flat(episode.metadata).keys()
        lengths = [episode.num_steps for episode in every]
        assert [e.num_steps for e in opened[1:]] == lengths[1:]
        assert [e.num_steps for e in opened[::-1]] == lengths[::-1]
        assert [e.num_steps for e in opened[[2, 0]]] == [lengths[2], lengths[0]]
        assert opened[1:][-1].num_steps == lengths[-1] and len(opened[5:3]) == 0
        assert sum(lengths) == sum(len(e.steps["is_first"]) for e in every)
        for index in (len(every), -len(every) - 1):
            with pytest.raises(IndexError, match="out of range"):
                opened[index]
        with pytest.raises(TypeError, match="an index must be an integer"):
            opened["0"]  # type: ignore[index]


def test_episodes_may_be_read_while_others_are_iterated(tmp_path: Path) -> None:
    for i in range(3):
        layout_files.aloha(tmp_path / f"episode_{i}.hdf5", i + 2)
    demo = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 4, 1: 5})
    for source, lengths in ((str(tmp_path / "episode_*.hdf5"), [2, 3, 4]), (demo, [5, 6])):
        with kabuki_rlds.open(source) as opened:
            seen = []
            for i, episode in enumerate(opened):
                seen.append(episode.num_steps)
                assert opened[-1 - i].num_steps == lengths[-1 - i]
                assert opened[:1][0].num_steps == lengths[0]
            assert seen == lengths


def test_images_are_decoded_and_required_fields_are_derived(tmp_path: Path, dataset: Any) -> None:
    sources = _sources(tmp_path, dataset)
    with kabuki_rlds.open(sources["kabuki"]) as opened:
        images = {path: value for path, value in _flat(opened[0].steps).items() if "image" in path}
        assert images and all(value.dtype == np.uint8 and value.ndim == 4 for value in images.values())
    with kabuki_rlds.open(sources["robomimic"]) as opened:
        assert opened[0].steps["is_last"].tolist() == [False] * 4 + [True]
        assert opened[0].last_is_step is False
        assert opened.info.environment
        assert "observation/eef_pos" in opened.schema.steps


def test_a_source_without_rewards_can_be_opened(tmp_path: Path) -> None:
    source = layout_files.robosuite(tmp_path / "demo.hdf5", {1: 4, 2: 3})
    with kabuki_rlds.open(source) as opened:
        assert "reward" not in opened[0].steps
        assert [episode.last_is_step for episode in opened] == [True, True]


def test_several_sources_are_concatenated(tmp_path: Path) -> None:
    paths = [handmade.write(tmp_path / f"{i}.hdf5", handmade.fields([i + 2, 3], [True, False])) for i in range(3)]
    with kabuki_rlds.open(paths) as opened:
        assert [episode.num_steps for episode in opened] == [2, 3, 3, 3, 4, 3]
        assert opened[4].num_steps == 4
    other = handmade.write(tmp_path / "o.hdf5", handmade.fields() | {"more": np.zeros(8)})
    with pytest.raises(KabukiError, match="does not fit"):
        kabuki_rlds.open([paths[0], other])


def test_episodes_stay_valid_after_the_source_is_closed(tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with kabuki_rlds.open(path) as opened:
        episode = opened[1]
    with h5py.File(path) as f:
        np.testing.assert_array_equal(episode.steps["reward"], f["reward"][3:4])


def test_a_missing_source_is_an_error() -> None:
    with pytest.raises(KabukiError, match="no such file"):
        kabuki_rlds.open("/nowhere/at/all.hdf5")
