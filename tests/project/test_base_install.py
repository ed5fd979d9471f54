"""The base install works without TensorFlow, TFDS and pyarrow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.places import ROOT

HEAVY = ("tensorflow", "tensorflow_datasets", "pyarrow", "simplejpeg", "PIL", "yaml", "gymnasium", "dm_env")


def test_importing_the_package_loads_no_heavy_dependency() -> None:
    code = f"import sys, kabuki_rlds; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_base_install_tour_needs_no_extra(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.project.base_tour", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
