"""Gets HDF5 files from the test suites of other projects.

A corpus that this machine cannot get, for example without a network, is an empty list and a message.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: A user block may precede the signature, at 0, 512, 1024, 2048, … bytes.
_USER_BLOCKS = (0, *(512 << i for i in range(10)))
#: Names of files that should be HDF5, even if their signature is damaged.
_SUFFIXES = {".h5", ".hdf5", ".hdf", ".he5", ".nc", ".nc4", ".mat", ".nxs"}
#: Where APT keeps its sources.
_APT = Path("/etc/apt")


def hdf5_files(folder: Path) -> list[Path]:
    """Returns all HDF5 files below a folder, also damaged ones, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and _is_hdf5(path))


def _is_hdf5(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        for at in _USER_BLOCKS:
            file.seek(at)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
    return False


def debian_hdf5(folder: Path) -> list[Path]:
    """Downloads and unpacks Debian's source package of HDF5.

    APT runs with its own configuration in `folder`: the repositories of this machine, with source packages.
    """
    parts, source = folder / "parts", folder / "source"
    for each in (parts, source, folder / "lists" / "partial", folder / "archives" / "partial"):
        each.mkdir(parents=True, exist_ok=True)
    for file in (_APT / "sources.list", *_APT.glob("sources.list.d/*")):
        if file.suffix == ".sources":
            text = re.sub(r"(?m)^Types:.*", "Types: deb-src", file.read_text())
        elif file.suffix == ".list" and file.is_file():
            text = re.sub(r"(?m)^deb\s", "deb-src ", file.read_text())
        else:
            continue
        (parts / file.name).write_text(text)
    options = {"Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": parts,
               "Dir::State::Lists": folder / "lists", "Dir::Cache": folder, "APT::Sandbox::User": "root"}  # fmt: skip
    apt_get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    # A repository without source packages makes `update` fail. The others are still updated.
    _run([*apt_get, "update"], source)
    _run([*apt_get, "source", "--download-only", "hdf5"], source)
    for archive in source.glob("*.orig.tar.*"):
        _unpack(archive, folder / "unpacked")
    return hdf5_files(folder / "unpacked")


def pypi(package: str, kind: str) -> Callable[[Path], list[Path]]:
    """Returns a function that downloads a package from PyPI and unpacks it, without installing it.

    Args:
      package: the name of the package, with the pinned version.
      kind: "wheel" or "source".
    """
    option = {"wheel": "--only-binary", "source": "--no-binary"}[kind]

    def download(folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        _run([*pip, option, ":all:", package], folder)
        for archive in (*folder.glob("*.whl"), *folder.glob("*.tar.gz")):
            _unpack(archive, folder / "unpacked")
        return hdf5_files(folder / "unpacked")

    return download


def h5py_tests(folder: Path) -> list[Path]:
    """Returns the test files that are installed with h5py."""
    return hdf5_files(Path(h5py.__file__).parent / "tests")


#: Name of each corpus to the function that gets it. PyTables cannot be downloaded as source without a compiler, and
#: its wheel contains the same test files.
CORPORA: dict[str, Callable[[Path], list[Path]]] = {
    "hdf5 (Debian)": debian_hdf5,
    "PyTables": pypi("tables==3.11.1", "wheel"),
    "pyfive": pypi("pyfive==1.3.0", "source"),
    "hdf5plugin": pypi("hdf5plugin==7.1.0", "source"),
    "h5py": h5py_tests,
}


def downloaded(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yields the name and the files of each corpus. Corpora that were downloaded before are not downloaded again."""
    for name, get in CORPORA.items():
        place = folder / re.sub(r"\W+", "_", name)
        yield name, hdf5_files(place / "unpacked") or get(place)


def _run(command: list[str], folder: Path) -> None:
    """Runs a command. If it fails, the message is printed and there will be no files."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        print(f"{command[0]}: {e}")
        return
    if done.returncode:
        print(f"{' '.join(command[-2:])}: {done.stderr.strip().splitlines()[-1:]}")


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
