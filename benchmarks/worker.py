"""Runs a benchmark method in a separate process.

    python -m benchmarks.worker METHOD FOLDER TARGET

The process imports all packages and prints `{}`. Then it reads lines from stdin, each
with a number of episodes or `all`. For each line it runs the method once and prints a
line of JSON: seconds, CPU seconds, steps, and the peak memory of the process in bytes.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any


class Worker:
    """A process that runs a benchmark method.

    The process that starts it must be small: on Linux the peak memory of a child process
    starts at the memory of its parent.

    Args:
      method: name in `benchmarks.methods.METHODS`.
      folder: the dataset to read.
      target: the file to write.
    """

    def __init__(self, method: str, folder: pathlib.Path, target: pathlib.Path):
        self.target = target
        self._name = f"{method} of {folder}"
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", method, str(folder), str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=pathlib.Path(__file__).parent.parent,
        )
        self._answer()

    def run(self, episodes: int | None) -> dict[str, Any]:
        """Runs the method once on `episodes` episodes, or on all if None. Returns the JSON answer."""
        assert self._process.stdin is not None
        print("all" if episodes is None else episodes, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process and deletes the target."""
        self._process.communicate()
        self.target.unlink(missing_ok=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} failed with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Runs the worker process."""
    name, folder, target = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    # Redirect stdout to stderr, so that output of libraries does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from benchmarks import methods

    methods.prepare()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        episodes = None if line.strip() == "all" else int(line)
        # Delete the file of the last run before the clock starts.
        target.unlink(missing_ok=True)
        start, cpu = time.perf_counter(), time.process_time()
        done = methods.METHODS[name](folder, target, episodes)
        result = {
            "seconds": time.perf_counter() - start if done.seconds is None else done.seconds,
            "cpu": time.process_time() - cpu,
            "steps": done.steps,
            "reading": done.reading,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            "size": target.stat().st_size if target.exists() else None,
        }
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
