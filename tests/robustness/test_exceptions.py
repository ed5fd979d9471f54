"""Errors are also Python's own, where one of the same meaning exists."""

from __future__ import annotations

from pathlib import Path

import pytest

import kabuki_rlds
from tests import handmade


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
        with pytest.raises(FileExistsError, match="already there") as caught:
            call()
        assert isinstance(caught.value, kabuki_rlds.DestinationExistsError)


def test_an_argument_that_makes_no_sense_is_a_value_error(file: Path) -> None:
    for call in (
        lambda: kabuki_rlds.load_steps(file, 0),
        lambda: kabuki_rlds.load_windows(file, 4, -1),
        lambda: kabuki_rlds.load_transitions(file, 4, gamma=-1),
        lambda: kabuki_rlds.load_steps(file, 4, last_row="none"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert isinstance(caught.value, kabuki_rlds.InvalidArgumentError)


def test_the_text_of_an_error_that_is_an_os_error_too_is_its_message() -> None:
    error = kabuki_rlds.SourceNotFoundError("a\nb\x1b: no such file")
    assert str(error) == "a b\\x1b: no such file"
