"""Reads HDF5 files of other projects and generated hostile files with every reader.

    python -m tests.zoo [--downloads FOLDER] [--only CORPUS] [FOLDER ...]

`make test-zoo` runs it with the corpora of `tests.zoo.corpora`; `make test-zoo ZOO=FOLDER` adds a folder of other
files. Each file is validated, inspected, converted and loaded in a separate process. There must be no crash, no hang
and no process above 1 GiB, and the result is success or an error of one short line. The command line reads some files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.robustness.fuzz.report import Tally, count, print_table
from tests.robustness.fuzz.watched import MESSAGE_CHARACTERS, Verdict, Worker, try_all
from tests.zoo import corpora, hostile_files

READERS = ("validate", "inspect", "convert", "open", "load_steps")
COMMANDS = ("validate", "inspect", "convert")
#: The command line reads one of so many files.
_SAMPLE = 20
_MAIN = "import sys; from kabuki_rlds.cli.main import main; sys.exit(main())"
#: Seconds after which a command is killed. It may wait for a busy machine.
_WALL = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="further folders of HDF5 files")
    parser.add_argument("--downloads", type=Path, help="keep downloaded corpora in this folder")
    parser.add_argument("--changes", type=int, default=1000, help="generated files with a random change, per version")
    parser.add_argument("--only", help="one corpus: part of its name")
    arguments = parser.parse_args()
    tallies: dict[tuple[str, str], Tally] = {}
    with tempfile.TemporaryDirectory() as name, Worker(None) as worker:
        temporary = Path(name)
        for corpus, files in _corpora(temporary, arguments):
            if arguments.only and arguments.only not in corpus:
                continue
            if not files:
                print(f"{corpus}: no files; skipped")
            count(corpus, try_all(worker, READERS, files), tallies)
            count(corpus, _try_commands(files[::_SAMPLE], temporary), tallies)
    sys.exit(0 if print_table(tallies) else 1)


def _corpora(temporary: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, list[Path]]]:
    if not arguments.only or arguments.only in "generated":
        yield "generated", hostile_files.write_all(temporary / "generated", arguments.changes)
    yield from corpora.downloaded(arguments.downloads or temporary)
    for folder in arguments.folders:
        yield folder.name, corpora.hdf5_files(folder)


def _try_commands(files: Sequence[Path], folder: Path) -> Iterator[tuple[Path, str, Verdict]]:
    for path in files:
        for command in COMMANDS:
            yield path, f"kabuki-rlds {command}", _try_command(command, path, folder / "out.hdf5")


def _try_command(command: str, path: Path, dest: Path) -> Verdict:
    """Runs a command of the command line: `validate` may print a line for each violation, an error is one line."""
    arguments = [command, str(path), *([str(dest), "--overwrite"] if command == "convert" else [])]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, *arguments], capture_output=True, text=True, timeout=_WALL, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict("hang")
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    if done.returncode not in (0, 1):
        return Verdict("crash", f"exit code {done.returncode}: {done.stderr}")
    too_long = any(len(line) > MESSAGE_CHARACTERS + 100 for line in done.stderr.splitlines())
    if "Traceback" in done.stderr or "this is a bug" in done.stderr or len(errors) > 1 or too_long:
        return Verdict("fault", done.stderr)
    return Verdict("rejected" if done.returncode else "accepted")


if __name__ == "__main__":
    main()
