"""Folders that tests read from."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Small datasets and logs that this project, or an older version of its tools, has recorded.
FIXTURES = ROOT / "tests" / "fixtures"
#: Inputs that are not part of the project. Tests that need them are skipped where they are missing.
CASES = ROOT.parent / "shared" / "cases"
