"""Counts and prints the results of a search."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests import handmade
from tests.robustness.fuzz.watched import Verdict

_HEADER = ("corpus", "reader", "inputs", "accepted", "rejected", "failures", "MiB", "seconds")


@dataclasses.dataclass
class Tally:
    """The results of one reader on one corpus.

    Attributes:
      accepted: inputs that were read.
      rejected: inputs with a one-line error.
      failures: all other inputs.
      memory: the worst peak memory of a process, in bytes.
      seconds: the longest attempt.
    """

    accepted: int = 0
    rejected: int = 0
    failures: int = 0
    memory: int = 0
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.accepted += verdict.kind == "accepted"
        self.rejected += verdict.kind == "rejected"
        self.failures += not verdict.is_good
        self.memory = max(self.memory, verdict.memory)
        self.seconds = max(self.seconds, verdict.seconds)

    @property
    def row(self) -> tuple[str, ...]:
        counts = (self.accepted + self.rejected + self.failures, self.accepted, self.rejected, self.failures)
        return (*(f"{count:,}" for count in counts), f"{self.memory >> 20:,}", f"{self.seconds:.1f}")


def count(
    corpus: str,
    tried: Iterable[tuple[Path, str, Verdict]],
    tallies: dict[tuple[str, str], Tally],
    keep: Path | None = None,
) -> None:
    """Adds verdicts to the tally of each (corpus, reader). Prints each failure, and copies its input to `keep`."""
    for path, reader, verdict in tried:
        tallies.setdefault((corpus, reader), Tally()).add(verdict)
        if not verdict.is_good:
            print(f"{corpus}: {path.name}: {reader}: {verdict.kind}: {verdict.message}", flush=True)
            if keep is not None:
                copy = keep / f"{verdict.kind}-{reader.replace(' ', '_')}-{path.name}"
                if path.is_dir():
                    shutil.copytree(path, copy, dirs_exist_ok=True)
                else:
                    shutil.copy(path, copy)


def print_table(tallies: dict[tuple[str, str], Tally]) -> bool:
    """Prints a line for each reader and corpus. Returns whether all inputs passed."""
    rows = [_HEADER, *((*names, *tally.row) for names, tally in tallies.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        names = (text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True))
        numbers = (text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True))
        print("  ".join((*names, *numbers)))
    return not any(tally.failures for tally in tallies.values())


def report(corpus: str, tried: Iterable[tuple[Path, str, Verdict]], keep: Path | None) -> bool:
    """Counts and prints the results of one corpus. Returns whether all inputs passed."""
    tallies: dict[tuple[str, str], Tally] = {}
    count(corpus, tried, tallies, keep)
    return print_table(tallies)


def search_arguments(description: str | None, inputs: int, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the arguments of a search: `inputs`, `seed` and `keep`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=inputs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that fail")
    arguments = parser.parse_args(argv)
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    return arguments


def secret_in(folder: Path) -> Path:
    """A folder with a file that no other may lead to."""
    secret = folder / "secret"
    secret.mkdir(exist_ok=True)
    handmade.write(secret / "secret.hdf5", handmade.fields())
    return secret
