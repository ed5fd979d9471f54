"""Whether the last row of an episode is a step or an observation: the decision, and its effect on all commands."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from kabuki_rlds.commands.opened_splits import open_splits
from kabuki_rlds.formats.rlds.dataset_info import shard_template
from kabuki_rlds.transforms.transfer import progress_bar
from tests import datasets, layout_files
from tests.places import CASES

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the shared inputs are not here")

#: Lengths of the episodes of each dataset, in rows.
LENGTHS = (5, 3, 8, 1, 6)
TOTAL = sum(LENGTHS)
ACTIONS_IF_PADDED = TOTAL - len(LENGTHS)


def _dataset(
    folder: Path,
    *,
    terminal: Iterable[bool] = (True,) * 5,
    zero_before: Iterable[bool] | None = None,
    last_action: Callable[[np.random.Generator, np.ndarray], Any] = lambda rng, before: rng.normal(size=2),
    last_reward: float = 1.0,
    last_discount: float = 1.0,
    discount: bool = True,
    is_last: bool = True,
    name: str = "toy",
) -> Path:
    """Writes an RLDS dataset with TFDS. `zero_before`: whether the discount before each last row is 0 (rule 4)."""
    rng = np.random.default_rng(len(LENGTHS))
    terminal = list(terminal)
    zero = list(terminal if zero_before is None else zero_before)
    episodes = []
    for number, length in enumerate(LENGTHS):
        steps: list[dict[str, Any]] = []
        for t in range(length):
            last = t == length - 1
            before = steps[-1]["action"] if steps else np.zeros(2)
            step = {
                "observation": {"state": rng.normal(size=3).astype(np.float32)},
                "action": np.asarray(last_action(rng, before) if last else rng.normal(size=2), np.float32),
                "reward": last_reward * (number != 2) if last else 0.25,
                "is_first": t == 0,
                "is_last": last and is_last,
                "is_terminal": last and terminal[number],
            }
            if discount:
                step["discount"] = last_discount if last else float(not (t == length - 2 and zero[number]))
            steps.append(step)
        episodes.append({"steps": steps})
    scalars = {"reward": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="zlib")}
    scalars |= {"discount": np.float32} if discount else {}
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": {"state": tfds.features.Tensor(shape=(3,), dtype=np.float32)},
                    "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_),
                    **scalars,
                }
            )
        }
    )
    return datasets.write(datasets.Recipe(name, features, {"train": episodes}, in_order=True), folder)


def _padded(folder: Path, **options: Any) -> Path:
    """A dataset whose last rows are observations, as in RLDS, with random values in the padding."""
    return _dataset(folder, last_reward=7.0, **options)


def _like_droid(folder: Path, **options: Any) -> Path:
    """A dataset whose last rows are steps: terminal, with an action, perhaps a reward, and discount 1 throughout."""
    return _dataset(folder, zero_before=[False] * 5, **options)


def _zero(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    return np.zeros(2)


def _steps(path: Path, **options: Any) -> tuple[int, float]:
    """(number of steps, sum of rewards) that `load_steps` serves."""
    return _count(kabuki_rlds.load_steps(path, 7, as_numpy=True, **options))


def _count(batches: Any) -> tuple[int, float]:
    rewards = [batch["reward"] for batch in batches]
    return sum(map(len, rewards)), float(sum(r.sum() for r in rewards))


def _flags(path: Path) -> list[bool]:
    with h5py.File(path) as file:
        flags = file["episodes/last_is_step"]
        assert flags.dtype == bool
        return flags[:].tolist()


#: Name to (function that writes the dataset, whether its last rows are steps, part of the reason).
KINDS: dict[str, tuple[Callable[[Path], Path], bool, str]] = {
    "rule 4, padding random": (_padded, False, "rule 4"),
    "rule 4, some truncated": (lambda f: _padded(f, terminal=[True, False, False, False, True]), False, "rule 4"),
    "like DROID": (_like_droid, True, "rule 4 is broken in 4 of 4"),
    "discount 0 on the last row": (lambda f: _like_droid(f, last_discount=0.0), True, "rule 4 is broken"),
    "rewards alone": (lambda f: _like_droid(f, last_action=_zero), True, "4 have a reward, 0 have an action"),
    "actions alone": (lambda f: _like_droid(f, last_reward=0.0), True, "0 have a reward, 5 have an action"),
    "rule 4 broken, padding zero": (lambda f: _like_droid(f, last_action=_zero, last_reward=0.0), False, "the data"),
    "rule 4 broken, padding NaN": (
        lambda f: _like_droid(f, last_action=lambda rng, before: np.full(2, np.nan), last_reward=np.nan),
        False,
        "the data",
    ),
    "rule 4 broken, padding copied": (
        lambda f: _like_droid(f, last_action=lambda rng, before: before, last_reward=0.0),
        False,
        "the data",
    ),
    "no discount": (lambda f: _padded(f, discount=False), False, "no discount"),
    "no episode ends with is_last": (lambda f: _dataset(f, terminal=[False] * 5, is_last=False), True, "is_last"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rule_4_and_the_data_decide_whether_last_rows_are_steps(kind: str, tmp_path: Path) -> None:
    write, is_step, reason = KINDS[kind]
    result = kabuki_rlds.convert(write(tmp_path), tmp_path / "k.hdf5")
    assert result.last_rows.is_step.tolist() == [is_step] * 5, result.last_rows
    assert reason in result.last_rows.reason
    assert _flags(tmp_path / "k.hdf5") == [is_step] * 5
    assert _steps(tmp_path / "k.hdf5")[0] == (TOTAL if is_step else ACTIONS_IF_PADDED)
    assert kabuki_rlds.validate(tmp_path / "k.hdf5") == []
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", tmp_path / "toy/1.0.0") == []


def test_conflicting_evidence_keeps_steps_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _dataset(tmp_path, zero_before=[True, False, False, False, False])
    result = kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    assert result.last_rows.is_step.all()
    assert "discount is 0 before the last row of 1 terminated episodes" in caplog.text
    assert "last_row='observation'" in caplog.text


def test_values_in_last_rows_of_truncated_episodes_are_padding_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = _padded(tmp_path, terminal=[False] * 5)
    assert not kabuki_rlds.convert(source, tmp_path / "k.hdf5").last_rows.is_step.any()
    assert "5 of 5 last rows look like steps" in caplog.text and "last_row='step'" in caplog.text
    caplog.clear()
    kabuki_rlds.convert(source, tmp_path / "s.hdf5", last_row="step")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert _steps(tmp_path / "s.hdf5")[0] == TOTAL


@pytest.mark.parametrize("block_rows", [1, 2, 3, 64])
def test_the_decision_does_not_depend_on_block_size(
    block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    with h5py.File(file, "a") as f:
        del f["episodes/last_is_step"]
        f.attrs["format_version"] = "1.0"
    monkeypatch.setattr("kabuki_rlds.formats.hdf5.source._BLOCK_ROWS", block_rows)
    again = kabuki_rlds.convert(file, tmp_path / "again.hdf5")
    assert "4 have a reward, 5 have an action; rule 4 is broken in 4 of 4" in again.last_rows.reason
    assert [(w.rule, w.count) for w in again.warnings] == [(4, 5)]


@pytest.mark.parametrize("last_row", ["step", "observation"])
def test_the_last_row_option_overrides_the_source(last_row: str, tmp_path: Path) -> None:
    sources = {
        "rlds": _like_droid(tmp_path),
        "robomimic": layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 1: 5}, next_obs=False, success=[0]),
        "with_next": layout_files.robomimic(tmp_path / "n.hdf5", {0: 4, 1: 5}, success=[0]),
        "minari": layout_files.minari(tmp_path / "m.hdf5", [4, 3]),
        "kabuki": kabuki_rlds.convert(_padded(tmp_path, name="other"), tmp_path / "k0.hdf5").path,
    }
    for name, source in sources.items():
        dest = tmp_path / f"{name}-{last_row}.hdf5"
        assert main(["convert", str(source), str(dest), "--last-row", last_row, "--quiet"]) == 0
        flags = _flags(dest)
        assert flags == [last_row == "step"] * len(flags), name
        # The file states the decision, so the next conversion keeps it.
        kabuki_rlds.convert(dest, tmp_path / f"{name}-again.hdf5")
        assert _flags(tmp_path / f"{name}-again.hdf5") == flags


def test_invalid_values_of_last_row_are_rejected(tmp_path: Path) -> None:
    source = _like_droid(tmp_path)
    file = kabuki_rlds.convert(source, tmp_path / "k.hdf5").path
    for call in (
        lambda: kabuki_rlds.convert(source, tmp_path / "x.hdf5", last_row="action"),  # type: ignore[arg-type]
        lambda: kabuki_rlds.load_steps(file, 4, last_row="last"),  # type: ignore[call-overload]
    ):
        with pytest.raises(KabukiError, match="expected 'step' or 'observation'"):
            call()
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(source), str(tmp_path / "x.hdf5"), "--last-row", "action"])


def test_the_last_row_option_of_loaders_overrides_the_file(tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    assert _steps(file)[0] == TOTAL
    assert _steps(file, last_row="observation")[0] == ACTIONS_IF_PADDED
    windows = kabuki_rlds.load_windows(file, 4, 3, pad=True, as_numpy=True, last_row="observation")
    assert sum(batch["observation_mask"].sum() - batch["mask"].sum() for batch in windows) > 0


# --- round trips through other formats ---


def test_rlds_datasets_from_build_keep_the_decision(tmp_path: Path) -> None:
    steps = kabuki_rlds.convert(_like_droid(tmp_path, name="a"), tmp_path / "a.hdf5").path
    padded = kabuki_rlds.convert(_padded(tmp_path, name="b"), tmp_path / "b.hdf5").path
    mixed = [True] * 5 + [False] * 5
    built = kabuki_rlds.build([steps, padded], tmp_path / "data", name="mixed")
    assert built.last_rows["train"].is_step.tolist() == mixed
    for split, wanted in (
        ("train", mixed),
        ("train[3:8]", mixed[3:8]),
        ("train[8:]+train[:2]", [False] * 2 + [True] * 2),
    ):
        back = kabuki_rlds.convert(built.path, tmp_path / f"{split}.hdf5", split=split)
        assert back.last_rows.is_step.tolist() == wanted, split
        assert "states" in back.last_rows.reason
    # The package's entry in metadata.json is not treated as metadata of the environment.
    assert kabuki_rlds.inspect(tmp_path / "train.hdf5").info.environment == kabuki_rlds.inspect(steps).info.environment


def test_rlds_datasets_built_from_robomimic_keep_the_decision(tmp_path: Path) -> None:
    source = layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 1: 5}, next_obs=False, success=[0])
    built = kabuki_rlds.build(source, tmp_path / "data", name="lift")
    assert json.loads((built.path / "metadata.json").read_text())["kabuki"]["last_is_step"] == {"train": [[True, 2]]}
    assert kabuki_rlds.convert(built.path, tmp_path / "k.hdf5").last_rows.is_step.all()


def test_skipped_episodes_do_not_shift_the_decision(tmp_path: Path) -> None:
    steps = kabuki_rlds.convert(_like_droid(tmp_path, name="a"), tmp_path / "a.hdf5").path
    padded = kabuki_rlds.convert(_padded(tmp_path, name="b"), tmp_path / "b.hdf5").path
    built = kabuki_rlds.build([steps, padded], tmp_path / "data", name="mixed")
    (shard,) = built.path.glob("*.tfrecord*")
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    back = kabuki_rlds.convert(built.path, tmp_path / "k.hdf5", skip_bad_episodes=True)
    assert back.last_rows.is_step.tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize("source", ["steps", "observations", "mixed"])
@pytest.mark.parametrize("layout", ["robomimic", "minari", "d4rl", "rlds"])
def test_round_trips_keep_actions_and_rewards(
    layout: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = []
    if source != "observations":
        paths.append(_like_droid(tmp_path, name="a"))
    if source != "steps":
        paths.append(_padded(tmp_path, name="b"))
    recipe = tmp_path / "flat.yaml"
    recipe.write_text("steps:\n  observation: {from: observation/state}\nrest: keep\n")
    file = kabuki_rlds.convert(paths, tmp_path / "k.hdf5", recipe=recipe).path
    actions = TOTAL * (source != "observations") + ACTIONS_IF_PADDED * (source != "steps")
    wanted = _steps(file)
    assert wanted[0] == actions
    if source == "observations":
        # An episode of one row has no action, and these layouts cannot store it.
        file = kabuki_rlds.convert(_without_actionless(paths), tmp_path / "k2.hdf5", recipe=recipe).path
    elif source == "mixed":
        parts = [paths[0], *_without_actionless(paths[1:])]
        file = kabuki_rlds.convert(parts, tmp_path / "k2.hdf5", recipe=recipe, split="train").path
    dest = tmp_path / ("toy-v0" if layout == "minari" else "out.hdf5")
    if layout == "rlds":
        back = kabuki_rlds.build(file, tmp_path / "data", name="toy").path
    else:
        result = export(file, dest, layout)  # type: ignore[arg-type]
        assert result.num_steps == actions
        repeats = source == "mixed" or (layout == "minari" and source == "steps")
        assert ("is repeated" in caplog.text) == repeats
        back = dest
    again = kabuki_rlds.convert(back, tmp_path / "back.hdf5").path
    assert _steps(again) == pytest.approx(wanted)


def _without_actionless(paths: list[Path]) -> list[Path]:
    """The datasets as Kabuki files, without the episode of a single row."""
    made = []
    for path in paths:
        parts = [f"train[{a}]" for a in (":3", "4:")]
        file = path.parent / "some.hdf5"
        kabuki_rlds.convert(path, file, split="+".join(parts))
        made.append(file)
    return made


# --- loaders ---


def test_transitions_include_terminal_last_steps_with_discount_0(tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    with h5py.File(file) as f:
        reward, seen = f["reward"][:], f["observation/state"][:]
    ends = np.cumsum(LENGTHS) - 1
    (batch,) = kabuki_rlds.load_transitions(file, TOTAL, as_numpy=True)
    is_end = np.isin(np.arange(TOTAL), ends)
    np.testing.assert_array_equal(batch["reward"], reward)
    np.testing.assert_array_equal(batch["discount"], ~is_end)
    np.testing.assert_array_equal(batch["is_terminal"], is_end)
    np.testing.assert_array_equal(batch["is_last"], is_end)
    nexts = np.where(is_end, np.arange(TOTAL), np.arange(TOTAL) + 1)
    np.testing.assert_array_equal(batch["next_observation"]["state"], seen[np.minimum(nexts, TOTAL - 1)])


@pytest.mark.parametrize("n_step", [1, 2, 3, 50])
@pytest.mark.parametrize("shuffle", [False, True])
def test_n_step_returns_include_the_reward_of_the_last_step(n_step: int, shuffle: bool, tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    gamma = 0.9
    with h5py.File(file) as f:
        reward, action = f["reward"][:], f["action"][:]
    wanted = {}
    for start, length in zip(np.cumsum((0, *LENGTHS)), LENGTHS, strict=False):
        for t in range(start, start + length):
            terms = min(n_step, start + length - t)
            total = sum(gamma**i * reward[t + i] for i in range(terms))
            ends = t + n_step >= start + length
            wanted[action[t].tobytes()] = (total, 0.0 if ends else gamma ** (n_step - 1), ends)
    found = {}
    loaded = kabuki_rlds.load_transitions(file, 4, shuffle, 0, n_step=n_step, gamma=gamma, as_numpy=True)
    for batch in loaded:
        for i, acted in enumerate(batch["action"]):
            found[acted.tobytes()] = (batch["reward"][i], batch["discount"][i], batch["is_terminal"][i])
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values)


def test_transitions_skip_last_steps_of_truncated_episodes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = _dataset(tmp_path, terminal=[True, False, True, False, False], zero_before=[False] * 5)
    file = kabuki_rlds.convert(source, tmp_path / "k.hdf5", last_row="step").path
    caplog.clear()
    count, _ = _count(kabuki_rlds.load_transitions(file, 4, as_numpy=True))
    assert count == TOTAL - 3
    assert "3 steps are not in the transitions" in caplog.text
    assert _steps(file)[0] == TOTAL


@pytest.mark.parametrize("pad", [False, True])
def test_windows_mask_rows_without_an_action(pad: bool, tmp_path: Path) -> None:
    for source, has_action in ((_like_droid(tmp_path, name="a"), True), (_padded(tmp_path, name="b"), False)):
        file = kabuki_rlds.convert(source, tmp_path / f"{has_action}.hdf5").path
        for batch in kabuki_rlds.load_windows(file, 4, 3, pad=pad, as_numpy=True):
            seen = batch["observation_mask"]
            np.testing.assert_array_equal(batch["mask"], seen & (has_action | ~batch["is_last"]))
            assert seen.all() or pad
            assert not batch["action"][~seen].any()


# --- reports ---


def test_inspect_and_validate_report_the_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _like_droid(tmp_path)
    assert main(["convert", str(source), str(tmp_path / "k.hdf5")]) == 0
    assert "last rows: steps in 5 of 5 episodes (the data: " in capsys.readouterr().out
    summary = kabuki_rlds.inspect(tmp_path / "k.hdf5")
    assert (summary.last_steps, summary.returns) == (5, kabuki_rlds.inspect(tmp_path / "k.hdf5").returns)
    assert summary.returns is not None
    assert summary.returns.mean * 5 == pytest.approx(0.25 * ACTIONS_IF_PADDED + 4)
    notes = {(note["rule"], note["field"]): note["count"] for note in summary.notes}
    assert notes == {(3, "episodes/last_is_step"): 5, (4, "discount"): 5}
    assert main(["validate", str(tmp_path / "k.hdf5")]) == 0
    said = capsys.readouterr().out
    assert "noted: rule 4: discount" in said and said.rstrip().endswith("valid")


def test_deviations_without_a_matching_note_are_violations(tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    with h5py.File(file, "a") as f:
        f["discount"][2] = 0
    assert {(v.rule, v.field) for v in kabuki_rlds.validate(file)} == {(4, "discount")}
    assert main(["validate", str(file)]) == 1
    with h5py.File(file, "a") as f:
        f["discount"][2] = 1
        del f.attrs["notes"]
    assert [(v.rule, v.count) for v in kabuki_rlds.validate(file)] == [(4, 5)]
    with h5py.File(file, "a") as f:
        f.attrs["notes"] = "[1]"
    assert [v.rule for v in kabuki_rlds.validate(file)] == [4, 7]


@pytest.mark.parametrize("write", [_like_droid, _padded])
def test_conform_corrects_discounts_according_to_the_decision(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = write(tmp_path)
    result = kabuki_rlds.convert(source, tmp_path / "k.hdf5", conform=True)
    assert result.warnings == []
    with h5py.File(tmp_path / "k.hdf5") as f:
        ends = np.cumsum(LENGTHS) - 1
        if write is _like_droid:
            assert result.changed == {"discount": 5}
            np.testing.assert_array_equal(np.flatnonzero(f["discount"][:] == 0), ends)
        else:
            assert result.changed == {}
    assert kabuki_rlds.validate(tmp_path / "k.hdf5") == []
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", source, conform=True) == []
    assert main(["validate", str(tmp_path / "k.hdf5"), "--against", str(source), "--conform"]) == 0
    plain = main(["validate", str(tmp_path / "k.hdf5"), "--against", str(source)])
    assert plain == (write is _like_droid)


def test_comparing_with_conform_ignores_filled_fields(tmp_path: Path) -> None:
    source = layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 1: 5}, next_obs=False, rewards=False)
    kabuki_rlds.convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, conform=True)
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", source, conform=True) == []


def test_compare_reports_a_different_decision(tmp_path: Path) -> None:
    source = _like_droid(tmp_path)
    kabuki_rlds.convert(source, tmp_path / "k.hdf5", last_row="observation")
    (difference,) = kabuki_rlds.compare(tmp_path / "k.hdf5", source)
    assert (difference.what, difference.count) == ("episodes/last_is_step", 5)
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", source, last_row="observation") == []


def _as_1_0(file: Path) -> Path:
    with h5py.File(file, "a") as f:
        del f["episodes/last_is_step"]
        f.attrs["format_version"] = "1.0"
        if "notes" in f.attrs:
            del f.attrs["notes"]
    return file


def test_format_1_0_files_with_rewards_in_last_rows_warn_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _as_1_0(kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "old.hdf5").path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert _steps(file)[0] == ACTIONS_IF_PADDED
        kabuki_rlds.load_transitions(file, 4, as_numpy=True)
        kabuki_rlds.inspect(file)
        kabuki_rlds.validate(file)
    said = [record.getMessage() for record in caplog.records if "last rows" in record.getMessage()]
    assert len(said) == 1 and "4 of 5" in said[0] and "last_row='step'" in said[0]
    # The suggested options work.
    assert _steps(file, last_row="step")[0] == TOTAL
    assert main(["convert", str(file), str(tmp_path / "new.hdf5"), "--last-row", "step", "--quiet"]) == 0
    assert _steps(tmp_path / "new.hdf5")[0] == TOTAL


def test_format_1_0_files_without_rewards_in_last_rows_do_not_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = _as_1_0(kabuki_rlds.convert(_dataset(tmp_path, last_reward=0.0), tmp_path / "old.hdf5").path)
    caplog.clear()
    _steps(file)
    kabuki_rlds.inspect(file)
    assert not caplog.records


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (np.zeros(4, bool), "expected one flag for each of the 5"),
        (np.zeros(5), "dtype"),
        (np.full(5, 3, "u1"), "0 and 1"),
    ],
)
def test_a_malformed_last_is_step_dataset_is_rejected(flags: np.ndarray, message: str, tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5").path
    with h5py.File(file, "a") as f:
        del f["episodes/last_is_step"]
        f["episodes/last_is_step"] = flags
    with pytest.raises(KabukiError, match=rf"last_is_step: .*{message}"):
        kabuki_rlds.load_steps(file, 4, as_numpy=True)
    assert any(v.rule == 6 and message in v.message for v in kabuki_rlds.validate(file))


def test_resume_keeps_the_decision(tmp_path: Path) -> None:
    source = _like_droid(tmp_path)
    kabuki_rlds.convert(source, tmp_path / "k.hdf5", resume=True)
    assert _flags(tmp_path / "k.hdf5") == [True] * 5


def test_a_recipe_that_sets_the_discount_does_not_change_the_decision(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps:\n  discount: {constant: 1.0}\nrest: keep\n")
    assert not kabuki_rlds.convert(_padded(tmp_path), tmp_path / "k.hdf5", recipe=recipe).last_rows.is_step.any()


def _renamed(source: Path, folder: Path, names: dict[str, str], **columns: Any) -> Path:
    """Writes a copy of the dataset with renamed step fields, or with constant values for a field."""
    builder = tfds.builder_from_directory(source)
    kept = dict(builder.info.features["steps"].feature.items())
    episodes = []
    for episode in builder.as_dataset(split="train"):
        steps = [dict(step.items()) for step in tfds.as_numpy(episode["steps"])]
        episodes.append({"steps": [{names.get(k, k): columns.get(k, v) for k, v in step.items()} for step in steps]})
    features = {names.get(name, name): feature for name, feature in kept.items()}
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(features)})
    return datasets.write(datasets.Recipe("renamed", features, {"train": episodes}, in_order=True), folder)


@pytest.mark.parametrize("write", [_like_droid, _padded])
def test_fields_renamed_by_a_recipe_are_used_for_the_decision(write: Callable[[Path], Path], tmp_path: Path) -> None:
    names = {"action": "control", "reward": "rew", "is_terminal": "done"}
    source = _renamed(write(tmp_path / "a"), tmp_path / "b", names)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "steps:\n  action: {from: control, select: [0, 1]}\n  reward: {from: rew}\n  is_terminal: {from: done}\n"
        "  discount: {constant: 1.0}\nrest: keep\n"
    )
    result = kabuki_rlds.convert(source, tmp_path / "k.hdf5", recipe=recipe)
    assert result.last_rows.is_step.tolist() == [write is _like_droid] * 5, result.last_rows
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", source, recipe=recipe) == []
    result = kabuki_rlds.convert(source, tmp_path / "c.hdf5", recipe=recipe, conform=True)
    assert result.changed
    assert kabuki_rlds.compare(tmp_path / "c.hdf5", source, recipe=recipe, conform=True) == []


@pytest.mark.parametrize("write", [_like_droid, _padded])
def test_comparing_with_conform_derives_is_terminal_like_convert(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = _renamed(write(tmp_path / "a"), tmp_path / "b", {"is_terminal": "done"})
    kabuki_rlds.convert(source, tmp_path / "k.hdf5", conform=True)
    assert kabuki_rlds.compare(tmp_path / "k.hdf5", source, conform=True) == []


def test_is_terminal_is_derived_from_the_discount_of_a_last_step(tmp_path: Path) -> None:
    source = _like_droid(tmp_path / "a", is_last=False, last_discount=0.0)
    source = _renamed(source, tmp_path / "b", {"is_terminal": "done"})
    result = kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    assert result.last_rows.is_step.all()
    with h5py.File(tmp_path / "k.hdf5") as f:
        assert np.flatnonzero(f["discount"][:] == 0).tolist() == (np.cumsum(LENGTHS) - 1).tolist()
    # is_last is never true, so is_terminal is derived at the ends of the source's episodes.
    assert kabuki_rlds.inspect(tmp_path / "k.hdf5").terminal == 5


@pytest.mark.parametrize("value", [False, True])
def test_wrong_is_first_flags_do_not_shift_the_decision(value: bool, tmp_path: Path) -> None:
    steps = _renamed(_like_droid(tmp_path / "a", last_discount=0.0), tmp_path / "b", {}, is_first=value)
    result = kabuki_rlds.convert([_padded(tmp_path / "c"), steps], tmp_path / "k.hdf5")
    assert {w.rule for w in result.warnings} == {5, 6}
    # The deviation is noted in the file, and the episode index is correct.
    assert kabuki_rlds.validate(tmp_path / "k.hdf5") == []
    with h5py.File(tmp_path / "k.hdf5", "a") as f:
        del f.attrs["notes"]
    rules = {(v.rule, v.field) for v in kabuki_rlds.validate(tmp_path / "k.hdf5")}
    assert rules == {(5, "is_first"), (6, "episodes/start")}


def test_returns_exclude_last_rows_without_is_last(tmp_path: Path) -> None:
    source = _dataset(tmp_path, terminal=[False] * 5, is_last=False)
    file = kabuki_rlds.convert(source, tmp_path / "k.hdf5", last_row="observation").path
    returns = kabuki_rlds.inspect(file).returns
    assert returns is not None and returns.mean * 5 == pytest.approx(_steps(file)[1])


def test_a_file_without_an_index_may_state_last_is_step(tmp_path: Path) -> None:
    file = kabuki_rlds.convert(_like_droid(tmp_path), tmp_path / "k.hdf5", conform=True).path
    with h5py.File(file) as f, h5py.File(tmp_path / "hand.hdf5", "w") as hand:
        for name in ("observation", "action", "reward", "discount", "is_first", "is_last", "is_terminal"):
            f.copy(name, hand)
        f.copy("episodes/last_is_step", hand, "episodes/last_is_step")
    assert kabuki_rlds.validate(tmp_path / "hand.hdf5") == []
    assert _steps(tmp_path / "hand.hdf5")[0] == TOTAL
    assert kabuki_rlds.convert(tmp_path / "hand.hdf5", tmp_path / "again.hdf5").last_rows.is_step.all()


def test_a_build_with_a_limit_decides_by_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The padding is zero. The only row in question is inside an episode.
    source = _like_droid(tmp_path, last_action=_zero, last_reward=0.0)
    file = _as_1_0(kabuki_rlds.convert(source, tmp_path / "k.hdf5").path)
    monkeypatch.setattr("kabuki_rlds.formats.hdf5.source._BLOCK_ROWS", 2)
    with open_splits(file) as opened:
        template = shard_template(tmp_path, "toy", "train", "tfrecord")
        with progress_bar(opened.total_steps, "toy", is_shown=False) as bar:
            info, written = opened.write("train", template, bar, limit=1)
    assert info.num_examples == written.num_episodes == 1
    assert written.last_rows.is_step.tolist() == [False]


# --- layouts ---


def test_layouts_without_last_observations_have_one_row_per_action(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {
        "robomimic": layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 1: 5}, next_obs=False, success=[0]),
        "libero": layout_files.libero(tmp_path / "l.hdf5", {0: 4, 1: 5}, "open"),
        "aloha": layout_files.aloha(tmp_path / "episode_0.hdf5", 9),
        "d4rl": layout_files.d4rl(
            tmp_path / "d.hdf5",
            observations=rng.normal(size=(9, 3)),
            terminals=np.arange(9) == 3,
            timeouts=np.arange(9) == 8,
        ),
    }
    for name, source in files.items():
        fill = {"reward": 0.0} if name == "aloha" else None
        result = kabuki_rlds.convert(source, tmp_path / f"{name}-k.hdf5", fill=fill)
        assert (result.num_steps, result.last_rows.num_observations) == (9, 0), name
        assert kabuki_rlds.validate(result.path) == [], name
        assert _steps(result.path)[0] == 9
        repeated = kabuki_rlds.convert(
            source, tmp_path / f"{name}-r.hdf5", fill=fill, assume={"last_observation": "repeat"}
        )
        assert repeated.num_steps == 9 + repeated.num_episodes and not repeated.last_rows.is_step.any(), name
        assert _steps(repeated.path) == _steps(result.path)


@pytest.mark.parametrize(("old", "new"), [("terminal", "repeat"), ("none", None)])
def test_deprecated_values_of_last_observation_still_work(
    old: str, new: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = layout_files.robomimic(tmp_path / "r.hdf5", {0: 4, 1: 5}, next_obs=False, success=[0])
    before = kabuki_rlds.convert(source, tmp_path / "a.hdf5", assume={"last_observation": old})
    assert "is deprecated" in caplog.text
    now = kabuki_rlds.convert(source, tmp_path / "b.hdf5", assume={"last_observation": new} if new else None)
    assert (before.num_steps, before.last_rows.is_step.tolist()) == (now.num_steps, now.last_rows.is_step.tolist())


@needs_cases
def test_shared_cases_give_the_documented_results(tmp_path: Path) -> None:
    droid = kabuki_rlds.convert(CASES / "droid_rlds/1.0.1", tmp_path / "droid.hdf5").path
    assert _steps(droid) == (43, 4.0)
    assert _count(kabuki_rlds.load_transitions(droid, 9, as_numpy=True)) == (43, 4.0)
    returns = kabuki_rlds.inspect(droid).returns
    assert returns is not None and returns.mean * 6 == pytest.approx(4.0)
    mimicgen = kabuki_rlds.convert(CASES / "mimicgen/demo.hdf5", tmp_path / "m.hdf5", fill={"reward": 0}).path
    assert _steps(mimicgen)[0] == 14
    assert kabuki_rlds.inspect(mimicgen).terminal == 2
    for layout in ("robomimic", "minari"):
        dest = tmp_path / ("m-v0" if layout == "minari" else "out.hdf5")
        assert export(mimicgen, dest, layout).num_steps == 14
        assert (
            export(
                CASES / "mimicgen/demo.hdf5",
                tmp_path / ("n-v0" if layout == "minari" else "out2.hdf5"),
                layout,
                fill={"reward": 0},
            ).num_steps
            == 14
        )
