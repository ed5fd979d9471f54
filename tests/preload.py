"""Builds a library that replaces functions of the C library in a process that preloads it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build_library(code: Path, folder: Path) -> Path:
    """Compiles C code, and returns the library for `LD_PRELOAD`. Skips the test if there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / f"{code.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, code, "-ldl"], check=True)
    return library
