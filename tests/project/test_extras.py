"""If an optional package is missing, the one-line error names the command that installs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kabuki_rlds
from kabuki_rlds import MissingDependencyError
from kabuki_rlds.cli.main import main
from tests import handmade

TENSORFLOW = "pip install 'kabuki_rlds[tensorflow]'"
RLDS = Path(__file__).parents[1] / "fixtures" / "tfds_4_4" / "old_robot" / "1.0.0"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a Kabuki file, and blocks the import of all optional packages."""
    for name in ("tensorflow", "tensorflow_datasets", "pyarrow", "pyarrow.dataset"):
        monkeypatch.setitem(sys.modules, name, None)
    return handmade.write(tmp_path / "f.hdf5", handmade.fields())


def _minari_parquet(folder: Path) -> Path:
    """The folder of a Minari dataset, as far as it is looked at without pyarrow."""
    (folder / "data" / "0").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text('{"data_format": "parquet"}')
    return folder


CALLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "convert of RLDS": (lambda file: kabuki_rlds.convert(RLDS, file.with_name("k.hdf5")), TENSORFLOW),
    "open of RLDS": (lambda file: kabuki_rlds.open(RLDS), TENSORFLOW),
    "export of RLDS": (lambda file: kabuki_rlds.export(RLDS, file.with_name("r.hdf5"), "robomimic"), TENSORFLOW),
    "compare with RLDS": (lambda file: kabuki_rlds.compare(file, RLDS), TENSORFLOW),
    "build": (lambda file: kabuki_rlds.build(file, file.parent, name="toy"), TENSORFLOW),
    "load": (kabuki_rlds.load, TENSORFLOW),
    "load_steps": (lambda file: kabuki_rlds.load_steps(file, 4), f"{TENSORFLOW}; as_numpy=True"),
    "load_windows": (lambda file: kabuki_rlds.load_windows(file, 4, 2), f"{TENSORFLOW}; as_numpy=True"),
    "load_transitions": (lambda file: kabuki_rlds.load_transitions(file, 4), f"{TENSORFLOW}; as_numpy=True"),
    "Minari's Arrow": (
        lambda file: kabuki_rlds.open(_minari_parquet(file.with_name("minari"))),
        "pip install 'kabuki_rlds[arrow]'",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_missing_package_raises_an_import_error_with_the_install_command(name: str, file: Path) -> None:
    call, remedy = CALLS[name]
    with pytest.raises(ImportError) as caught:
        call(file)
    assert isinstance(caught.value, MissingDependencyError)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path for path in file.parent.iterdir() if path.suffix == ".hdf5"] == [file]


@pytest.mark.parametrize(
    "command",
    [
        ("convert", RLDS, "k.hdf5"),
        ("validate", "f.hdf5", "--against", RLDS),
        ("export", RLDS, "r.hdf5", "--to", "robomimic"),
        ("recipe", RLDS),
        ("build", "f.hdf5", "--data-dir", "rlds"),
        ("demo", "demo"),
    ],
    ids=lambda command: command[0],
)
def test_missing_package_prints_one_line_and_exits_with_1(command, file, monkeypatch, capsys) -> None:
    monkeypatch.chdir(file.parent)
    assert main([str(argument) for argument in command]) == 1
    *warnings, line = capsys.readouterr().err.splitlines()
    assert all(warning.startswith("kabuki-rlds: warning: ") for warning in warnings)
    assert line.startswith("kabuki-rlds: error: ")
    assert TENSORFLOW in line
