"""Sources named by a folder, a pattern or a TFDS name: what is read, in which order, and what is reported."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from tests import layout_files
from tests.formats.test_kabuki_source import steps, write
from tests.places import FIXTURES

LOG = FIXTURES / "envlogger_versions"


def kabuki(path: Path, reward: float, episodes: int = 2) -> Path:
    """A Kabuki file whose rewards are all `reward`, which tells the sources apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: np.concatenate([column] * episodes) for name, column in steps(3).items()}
    return write(path, columns | {"reward": np.full(3 * episodes, reward, np.float32)})


@pytest.fixture
def rlds(tmp_path_factory):
    """`rlds(folder, name, version, reward)` makes an RLDS dataset."""

    def make(folder: Path, name: str, version: str, reward: float) -> Path:
        file = kabuki(tmp_path_factory.mktemp("from") / "x.hdf5", reward)
        with h5py.File(file, "a") as f:
            f.attrs["version"] = version
        return kabuki_rlds.build(file, folder, name=name).path

    return make


def rewards(path: Path) -> list[float]:
    """The rewards of a file, each value once, in order."""
    with h5py.File(path) as f:
        return list(dict.fromkeys(f["reward"][:].tolist()))


def read(tmp_path: Path, source, **options) -> list[float]:
    return rewards(kabuki_rlds.convert(source, tmp_path / "out" / "k.hdf5", overwrite=True, **options).path)


@pytest.fixture(autouse=True)
def out(tmp_path):
    (tmp_path / "out").mkdir()


@pytest.fixture
def log_folder(dataset_of_log, tmp_path) -> Path:
    return Path(shutil.copytree(dataset_of_log, tmp_path / "runs" / "dqn"))


@pytest.fixture(scope="session")
def dataset_of_log() -> Path:
    """An EnvLogger log."""
    return next(path.parent for path in sorted(LOG.rglob("metadata.riegeli")))


def test_the_newest_version_takes_precedence_over_hdf5_files(tmp_path, rlds, caplog):
    for version, reward in (("1.0.0", 1), ("1.10.0", 3), ("1.9.0", 2)):
        rlds(tmp_path / "tfds", "hopper", version, reward)
    kabuki(tmp_path / "tfds/hopper/hopper.hdf5", 9)
    kabuki(tmp_path / "tfds/hopper/old/h.h5", 9)
    for source, data_dir in ((tmp_path / "tfds/hopper", None), ("hopper", tmp_path / "tfds")):
        caplog.clear()
        assert read(tmp_path, source, data_dir=data_dir) == [3]
        assert "HDF5 files are not read: hopper.hdf5, old/h.h5" in caplog.text
    assert read(tmp_path, tmp_path / "tfds/hopper/hopper.hdf5") == [9]
    assert read(tmp_path, "hopper:1.9.0", data_dir=tmp_path / "tfds") == [2]


def test_an_incomplete_newest_version_is_an_error(tmp_path, rlds):
    rlds(tmp_path, "hopper", "1.0.0", 1)
    (tmp_path / "hopper/2.0.0").mkdir()
    with pytest.raises(KabukiError, match=r"hopper/2.0.0: the newest .* is incomplete; .* its path: .*hopper/1.0.0$"):
        read(tmp_path, tmp_path / "hopper")
    (tmp_path / "hopper/2.0.0").rmdir()
    for name in ("2.0.0.incompleteABC", "incomplete.ABC_2.0.0", "2.0.0.partial"):
        shutil.copytree(tmp_path / "hopper/1.0.0", tmp_path / "hopper" / name)
    assert read(tmp_path, tmp_path / "hopper") == [1]
    assert read(tmp_path, tmp_path / "hopp*") == [1]


@pytest.mark.parametrize("of", ["itself", "the folder above"])
def test_a_log_takes_precedence_over_hdf5_files(tmp_path, log_folder, caplog, of):
    source = log_folder if of == "itself" else log_folder.parent
    want = kabuki_rlds.convert(source, tmp_path / "out" / "want.hdf5")
    with h5py.File(source / "weights.h5", "w") as f:
        f["dense/kernel"] = np.zeros((3, 3))
    got = kabuki_rlds.convert(source, tmp_path / "out" / "got.hdf5")
    assert (got.num_steps, got.num_episodes) == (want.num_steps, want.num_episodes)
    assert "HDF5 files are not read: weights.h5" in caplog.text


def test_weights_beside_a_recording(tmp_path, caplog):
    with kabuki_rlds.Logger(tmp_path / "runs/robot") as logger:
        logger.reset({"x": np.zeros(2)})
        logger.step(np.zeros(1), 5.0, {"x": np.ones(2)}, last=True)
    for place in ("runs", "runs/robot"):
        with h5py.File(tmp_path / place / "weights.h5", "w") as f:
            f["dense"] = np.zeros(3)
        assert 5 in read(tmp_path, tmp_path / "runs/robot")
        assert 5 in read(tmp_path, tmp_path / "runs")
    assert "HDF5 files are not read: robot/weights.h5, weights.h5" in caplog.text


def test_datasets_in_a_folder_are_joined_in_the_order_of_their_names(tmp_path, rlds, caplog):
    caplog.set_level(logging.INFO, "kabuki_rlds")
    for name, version, reward in (("b10", "1.0.0", 4), ("a", "1.0.0", 1), ("b2", "1.0.0", 2), ("b2", "2.0.0", 3)):
        rlds(tmp_path / "all", name, version, reward)
    kabuki(tmp_path / "all/extra.hdf5", 9)
    assert read(tmp_path, tmp_path / "all") == [1, 3, 4]
    assert "all: joins 3 datasets in this order: a/1.0.0, b2/2.0.0, b10/1.0.0" in caplog.text
    assert "HDF5 files are not read: extra.hdf5" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "want", "order"),
    [
        ("all/b*", [3, 4], "b2/2.0.0, b10/1.0.0"),
        ("all/*/1.0.0", [1, 2, 4], "a/1.0.0, b2/1.0.0, b10/1.0.0"),
        ("*/b[12]*", [3, 4], "all/b2/2.0.0, all/b10/1.0.0"),
        ("**/b*", [3, 4], "all/b2/2.0.0, all/b10/1.0.0"),
        ("all/**", [1, 3, 4], "a/1.0.0, b2/2.0.0, b10/1.0.0"),
        ("all/b2/*", [3], ""),
    ],
)
def test_datasets_that_a_pattern_matches_are_joined(tmp_path, rlds, caplog, pattern, want, order):
    caplog.set_level(logging.INFO, "kabuki_rlds")
    for name, version, reward in (("b10", "1.0.0", 4), ("a", "1.0.0", 1), ("b2", "1.0.0", 2), ("b2", "2.0.0", 3)):
        rlds(tmp_path / "all", name, version, reward)
    assert read(tmp_path, tmp_path / pattern) == want
    assert not order or f"datasets in this order: {order}" in caplog.text


def test_a_folder_of_configs_of_one_dataset_is_an_error_that_lists_them(tmp_path, rlds):
    for config in ("medium", "expert"):
        rlds(tmp_path, f"hopper/{config}", "1.0.0", 1 if config == "expert" else 2)
    for source, data_dir in ((tmp_path / "hopper", None), ("hopper", tmp_path), (tmp_path, None)):
        with pytest.raises(
            KabukiError, match=r"holds 2 configs of the dataset 'hopper': expert, medium; give the path"
        ):
            read(tmp_path, source, data_dir=data_dir)
    assert read(tmp_path, "hopper/medium", data_dir=tmp_path) == [2]
    # TFDS before 4.0 does not state the config.
    for path in (tmp_path / "hopper").glob("*/1.0.0/dataset_info.json"):
        info = json.loads(path.read_text())
        del info["configName"]
        path.write_text(json.dumps(info))
    with pytest.raises(KabukiError, match=r"configs of the dataset 'hopper': expert, medium"):
        read(tmp_path, tmp_path / "hopper")


def test_runs_of_one_name_are_no_configs(tmp_path, rlds):
    for seed in (0, 1):
        rlds(tmp_path / f"runs/seed_{seed}", "hopper", "1.0.0", seed + 1)
    assert read(tmp_path, tmp_path / "runs") == [1, 2]


def test_a_dataset_and_a_log_are_joined(tmp_path, rlds, log_folder):
    same = kabuki_rlds.convert(log_folder, tmp_path / "out/log.hdf5")
    kabuki_rlds.build(same.path, tmp_path / "runs", name="a")
    got = kabuki_rlds.convert(tmp_path / "runs", tmp_path / "out/k.hdf5")
    assert (got.num_steps, got.num_episodes) == (2 * same.num_steps, 2 * same.num_episodes)


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("data/*/demo.hdf5", [1, 2]),
        ("da*/run_?/*.hdf5", [1, 2]),
        ("**/demo.hdf5", [0, 1, 2, 3]),
        ("data/**/*.hdf5", [0, 1, 2, 3]),
        ("data/**/deep/**/*.hdf5", [3]),
        ("data/[!d]*/demo.hdf5", [1, 2]),
        ("data/**", [0, 1, 2, 3]),
    ],
)
def test_wildcards_in_any_component(tmp_path, pattern, want):
    for place, reward in (("demo", 0), ("run_1/demo", 1), ("run_2/demo", 2), ("z/deep/er/demo", 3)):
        file = kabuki(tmp_path / f"data/{place}.hdf5", reward)
        # Files that macOS leaves on a disk of another system.
        file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert read(tmp_path, tmp_path / pattern) == want


def test_what_a_pattern_matches_beside_datasets_is_reported(tmp_path, rlds, caplog):
    rlds(tmp_path / "all", "a", "1.0.0", 1)
    (tmp_path / "all/README.md").write_text("two datasets")
    (tmp_path / "all/videos").mkdir()
    assert read(tmp_path, tmp_path / "all/*") == [1]
    assert f"is ignored: {tmp_path}/all/README.md, {tmp_path}/all/videos" in caplog.text
    with pytest.raises(KabukiError, match=r"R\*: matches no HDF5 file and no folder with a dataset; .*README.md"):
        read(tmp_path, tmp_path / "all/R*")
    with pytest.raises(KabukiError, match=r"no file or folder matches this pattern"):
        read(tmp_path, tmp_path / "all/**/*.h5")


def test_hdf5_files_of_any_name_match_a_pattern(tmp_path):
    for i in (1, 2):
        kabuki(tmp_path / f"data/{i}.mat", i)
    assert read(tmp_path, tmp_path / "data/*.mat") == [1, 2]
    assert read(tmp_path, kabuki(tmp_path / "data/[1].hdf5", 7)) == [7]


def test_links_are_followed_once(tmp_path, rlds):
    rlds(tmp_path / "elsewhere", "hopper", "1.0.0", 1)
    kabuki(tmp_path / "other/x.hdf5", 2)
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/hopper").symlink_to(tmp_path / "elsewhere/hopper")
    (tmp_path / "data/latest").symlink_to(tmp_path / "data/hopper")
    for i in range(30):
        (tmp_path / f"data/inner/up{i}").symlink_to(tmp_path / "data")
    got = kabuki_rlds.convert(tmp_path / "data", tmp_path / "out/k.hdf5")
    assert (got.num_episodes, rewards(got.path)) == (2, [1])
    (tmp_path / "files").mkdir()
    (tmp_path / "files/latest").symlink_to(tmp_path / "files")
    (tmp_path / "files/here").symlink_to(tmp_path / "other")
    for source in ("files", "files/**", "files/*/*.hdf5"):
        got = kabuki_rlds.convert(tmp_path / source, tmp_path / "out/k.hdf5", overwrite=True)
        assert (got.num_episodes, rewards(got.path)) == (2, [2])


def test_a_log_and_a_link_to_it_are_read_once(tmp_path, log_folder):
    want = kabuki_rlds.convert(log_folder, tmp_path / "out/want.hdf5")
    (log_folder.parent / "latest").symlink_to(log_folder)
    assert kabuki_rlds.convert(log_folder.parent, tmp_path / "out/got.hdf5").num_episodes == want.num_episodes


def test_macos_files_beside_shards_and_logs_are_ignored(tmp_path, rlds, log_folder):
    rlds(tmp_path / "tfds", "hopper", "1.0.0", 1)
    want = kabuki_rlds.convert(log_folder, tmp_path / "out/want.hdf5")
    for folder in (tmp_path / "tfds", log_folder):
        for path in [folder, *folder.rglob("*")]:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert read(tmp_path, tmp_path / "tfds/hopper") == [1]
    assert read(tmp_path, tmp_path / "tfds") == [1]
    assert kabuki_rlds.convert(log_folder, tmp_path / "out/got.hdf5").num_episodes == want.num_episodes


def test_macos_files_beside_minari_tables_are_ignored(tmp_path):
    folder = layout_files.minari_arrow(tmp_path / "door", [3, 4])
    for path in list(folder.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert kabuki_rlds.convert(folder, tmp_path / "out/k.hdf5").num_episodes == 2


def test_a_local_folder_that_shadows_a_name_is_mentioned(tmp_path, rlds, monkeypatch, caplog):
    rlds(tmp_path / "tfds", "hopper", "1.0.0", 1)
    (tmp_path / "hopper").mkdir()
    (tmp_path / "hopper/notes.txt").write_text("nothing")
    monkeypatch.chdir(tmp_path)
    shadows = rf"the local folder {tmp_path}/hopper has the name of the TFDS dataset {tmp_path}/tfds/hopper"
    with pytest.raises(KabukiError, match=rf"it holds notes.txt\); {shadows}: to read that, give its path"):
        read(tmp_path, "hopper", data_dir=tmp_path / "tfds")
    kabuki(tmp_path / "hopper/h.hdf5", 2)
    assert read(tmp_path, "hopper", data_dir=tmp_path / "tfds") == [2]
    assert f"{shadows}, and is read instead of it" in caplog.text
    assert read(tmp_path, tmp_path / "tfds/hopper", data_dir=tmp_path / "tfds") == [1]


def test_a_name_that_a_given_folder_lacks(tmp_path, rlds):
    rlds(tmp_path / "tfds", "hopper", "1.0.0", 1)
    with pytest.raises(
        KabukiError, match=r"walker: no such file or folder, and .*tfds holds no .* \(it holds hopper\)$"
    ):
        read(tmp_path, "walker", data_dir=tmp_path / "tfds")
    with pytest.raises(KabukiError, match=r"and the folder .*/nowhere does not exist"):
        read(tmp_path, "walker", data_dir=tmp_path / "nowhere")


def test_a_recording_that_goes_on_is_reported(tmp_path, caplog):
    kabuki(tmp_path / "runs/a.hdf5", 1)
    with kabuki_rlds.Logger(tmp_path / "runs/b.hdf5") as logger:
        logger.reset({"x": np.zeros(2)})
        logger.step(np.zeros(1), 5.0, {"x": np.ones(2)}, last=True)
        assert read(tmp_path, tmp_path / "runs") == [1]
        assert f"{tmp_path}/runs/b.hdf5.recording: the recording has not ended" in caplog.text


URL = "gs://bucket/x"


@pytest.mark.parametrize("form", [str, Path], ids=["text", "path"])
@pytest.mark.parametrize(
    "call",
    [
        lambda url, file, folder: kabuki_rlds.convert(url, folder / "k.hdf5"),
        lambda url, file, folder: kabuki_rlds.convert(file, url),
        lambda url, file, folder: kabuki_rlds.convert(file, folder / "k.hdf5", data_dir=url),
        lambda url, file, folder: kabuki_rlds.convert(file, folder / "k.hdf5", recipe=url),
        lambda url, file, folder: kabuki_rlds.build(url, folder),
        lambda url, file, folder: kabuki_rlds.build({"train": [url]}, folder),
        lambda url, file, folder: kabuki_rlds.build(file, url, name="x"),
        lambda url, file, folder: kabuki_rlds.validate(url),
        lambda url, file, folder: kabuki_rlds.inspect(url),
        lambda url, file, folder: kabuki_rlds.compare(file, url),
        lambda url, file, folder: kabuki_rlds.load(url),
        lambda url, file, folder: kabuki_rlds.load_steps(url, 2),
        lambda url, file, folder: kabuki_rlds.load_windows([file, url], 2, 2, as_numpy=True),
        lambda url, file, folder: kabuki_rlds.Logger(url),
        lambda url, file, folder: kabuki_rlds.Logger(f"{url}/robot.hdf5"),
    ],
)
def test_a_url_is_refused_everywhere(tmp_path, monkeypatch, call, form):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    file = kabuki(tmp_path / "in.hdf5", 1)
    with pytest.raises(KabukiError, match=r"^gs:/+bucket/x.*: is a URL \(gs:\), but only local files are supported"):
        call(form(URL), file, folder)
    assert list(folder.iterdir()) == []


def test_the_tfds_builder_refuses_a_url():
    from kabuki_rlds.commands.tfds_builder import KabukiConfig

    for path in (URL, [URL], {"test": URL}):
        with pytest.raises(KabukiError, match="a URL"):
            KabukiConfig(name="x", path=path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", URL, "k.hdf5"],
        ["convert", "{file}", URL],
        ["convert", "{file}", "k.hdf5", "--data-dir", URL],
        ["build", f"train={URL}?a=b", "--out", "out"],
        ["build", "{file}", "--name", "x", "--out", URL],
        ["export", "{file}", URL, "--to", "d4rl"],
        ["validate", URL],
        ["validate", "{file}", "--against", URL],
        ["validate", "{file}", "--against", "{file}", "--data-dir", URL],
        ["inspect", URL],
        ["recipe", URL],
        ["demo", URL],
    ],
)
def test_each_command_refuses_a_url(tmp_path, monkeypatch, capsys, arguments):
    from kabuki_rlds.cli.main import main

    file = kabuki(tmp_path / "in.hdf5", 1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main([argument.format(file=file) for argument in arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("kabuki-rlds: error: gs:")
    assert list((tmp_path / "work").iterdir()) == []


def test_the_command_prints_which_datasets_are_joined(tmp_path, rlds, capsys):
    from kabuki_rlds.cli.main import main

    for name in ("b", "a"):
        rlds(tmp_path / "all", name, "1.0.0", 1)
    assert main(["convert", str(tmp_path / "all"), str(tmp_path / "out/k.hdf5")]) == 0
    assert capsys.readouterr().err.count("all: joins 2 datasets in this order: a/1.0.0, b/1.0.0\n") == 1


def test_export_refuses_a_url(tmp_path, monkeypatch):
    from kabuki_rlds.commands.export import export

    monkeypatch.chdir(tmp_path)
    file = kabuki(tmp_path / "in.hdf5", 1)
    for arguments in ((URL, "x.hdf5"), (file, "s3://b/x.hdf5"), (file, "hf://lab/x-v0")):
        with pytest.raises(KabukiError, match="a URL"):
            export(*arguments, "minari" if arguments[1].startswith("hf") else "d4rl")  # type: ignore[call-arg]
    assert not (tmp_path / "s3:").exists() and not (tmp_path / "hf:").exists()


def test_a_folder_with_a_colon_in_its_name_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kabuki(tmp_path / "gs:/x.hdf5", 3)
    assert read(tmp_path, "./gs:/x.hdf5") == [3]
    assert read(tmp_path, tmp_path / "gs:/x.hdf5") == [3]
