"""Errors are also Python's own, where one of the same meaning exists."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.files.atomic_file import StagedFile
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.images import png
from tests import handmade, layout_files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "f.hdf5", handmade.fields())


def test_a_missing_source_is_a_file_not_found_error(tmp_path: Path) -> None:
    for call in (
        lambda: kabuki_rlds.convert(tmp_path / "no.hdf5", tmp_path / "k.hdf5"),
        lambda: kabuki_rlds.open(tmp_path / "no"),
        lambda: kabuki_rlds.load_steps(tmp_path / "no.hdf5", 4),
        lambda: kabuki_rlds.inspect(tmp_path / "no.hdf5"),
    ):
        with pytest.raises(FileNotFoundError, match="no such file") as caught:
            call()
        assert isinstance(caught.value, kabuki_rlds.SourceNotFoundError)
        assert isinstance(caught.value, kabuki_rlds.KabukiError)
        assert "\n" not in str(caught.value)


def test_an_existing_destination_is_a_file_exists_error(file: Path, tmp_path: Path) -> None:
    kabuki_rlds.convert(file, tmp_path / "k.hdf5")
    kabuki_rlds.build(file, tmp_path / "data", name="toy")
    for call in (
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5"),
        lambda: kabuki_rlds.build(file, tmp_path / "data", name="toy"),
        lambda: kabuki_rlds.export(file, tmp_path / "k.hdf5", "robomimic"),
    ):
        with pytest.raises(FileExistsError, match="already exists") as caught:
            call()
        assert isinstance(caught.value, kabuki_rlds.DestinationExistsError)


@pytest.mark.parametrize("staged", [StagedFile, StagedFolder])
def test_a_destination_created_during_the_write_is_a_file_exists_error(staged, file, tmp_path, monkeypatch):
    commit = staged.commit
    created: list[Path] = []

    def create_and_commit(self) -> None:
        self.destination.mkdir()
        created.append(self.destination)
        commit(self)

    monkeypatch.setattr(staged, "commit", create_and_commit)
    with pytest.raises(kabuki_rlds.DestinationExistsError) as caught:
        if staged is StagedFile:
            kabuki_rlds.convert(file, tmp_path / "k.hdf5")
        else:
            kabuki_rlds.build(file, tmp_path / "data", name="toy")
    assert str(caught.value) == f"{created[0]}: already exists; overwrite=True replaces it"


def test_an_argument_that_makes_no_sense_is_a_value_error(file: Path) -> None:
    for call in (
        lambda: kabuki_rlds.load_steps(file, 0),
        lambda: kabuki_rlds.load_windows(file, 4, -1),
        lambda: kabuki_rlds.load_transitions(file, 4, gamma=-1),
        lambda: kabuki_rlds.load_steps(file, 4, last_row="none"),  # type: ignore[call-overload]
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert isinstance(caught.value, kabuki_rlds.InvalidArgumentError)


def test_the_text_of_an_error_that_is_an_os_error_too_is_its_message() -> None:
    error = kabuki_rlds.SourceNotFoundError("a\nb\x1b: no such file")
    assert str(error) == "a b\\x1b: no such file"


def test_a_value_that_an_option_cannot_have_is_a_value_error(file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("nonsense: 1")
    for call in (
        lambda: kabuki_rlds.convert([], tmp_path / "k.hdf5"),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", split="train[x:]"),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", split="test"),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", fill={"is_first": 1}),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", recipe=recipe),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", recipe="unknown"),
        lambda: kabuki_rlds.convert(file, tmp_path / "k.hdf5", assume={"dones": "end"}),
        lambda: kabuki_rlds.convert(file, "https://host/k.hdf5"),
        lambda: kabuki_rlds.build(file, tmp_path, name="7 of 9"),
        lambda: kabuki_rlds.load_steps(file, 4, fields="unknown"),
        lambda: kabuki_rlds.Logger(tmp_path / "log", images="gif"),  # type: ignore[arg-type]
    ):
        with pytest.raises(kabuki_rlds.InvalidArgumentError):
            call()


def test_sources_that_do_not_fit_each_other_are_named_with_their_fields(file: Path, tmp_path: Path) -> None:
    other = handmade.write(tmp_path / "other.hdf5", handmade.fields() | {"extra": np.zeros(sum(handmade.LENGTHS))})
    with pytest.raises(kabuki_rlds.SchemaMismatchError) as caught:
        kabuki_rlds.convert([file, other], tmp_path / "k.hdf5")
    assert caught.value.fields == ("extra",)
    assert caught.value.file == str(other)


def test_a_required_field_that_is_missing_is_named(tmp_path: Path) -> None:
    fields = handmade.fields()
    del fields["reward"]
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(kabuki_rlds.SchemaMismatchError) as caught:
        kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    assert (caught.value.file, caught.value.fields) == (str(source), ("reward",))
    assert str(caught.value).startswith(f"{source}: ")


def test_damaged_rows_are_named_with_their_file_field_and_rows(tmp_path: Path) -> None:
    source = tmp_path / "in.hdf5"
    steps = sum(handmade.LENGTHS)
    noise = np.random.default_rng(0).normal(size=(steps, 512))
    with h5py.File(handmade.write(source, handmade.fields()), "a") as file:
        dataset = file.create_dataset("noise", data=noise, chunks=(steps, 512), compression="gzip")
        chunk = dataset.id.get_chunk_info(0)
    with source.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    with pytest.raises(kabuki_rlds.DamagedDataError) as caught:
        kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    assert (caught.value.file, caught.value.field, caught.value.rows) == (str(source), "noise", range(steps))
    assert str(caught.value) == f"{source}: {caught.value.problem}"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.rows) == (str(caught.value), range(steps))


def test_contradictory_lengths_of_a_demonstration_are_damage(tmp_path: Path) -> None:
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        del file["data/demo_1/rewards"]
        file["data/demo_1/rewards"] = np.zeros(9)
    with pytest.raises(kabuki_rlds.DamagedDataError, match="9 rows, where there are 4") as caught:
        kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    assert (caught.value.file, caught.value.field) == (str(source), "rewards")


def test_a_damaged_image_is_named_with_its_row(tmp_path: Path) -> None:
    fields = handmade.fields()
    steps = sum(handmade.LENGTHS)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    whole = png.file(np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8))
    files = [whole] * steps
    files[5] = whole[:-20]
    with h5py.File(source, "a") as file:
        file.create_dataset("image", data=np.array(files, "S"))
    with pytest.raises(kabuki_rlds.DamagedDataError) as caught:
        kabuki_rlds.convert(source, tmp_path / "k.hdf5", images="encoded")
    assert caught.value.field == "image"
    # The row of the episode, as in the message.
    assert caught.value.rows == range(1, 2)
    assert "episode 2: row 1: " in str(caught.value)
