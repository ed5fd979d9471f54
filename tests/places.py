"""Paths of the folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Small datasets and logs, recorded with this project or with older versions of its dependencies.
FIXTURES = ROOT / "tests" / "fixtures"
#: Inputs that are not part of the project. Tests that need them are skipped if they are missing.
CASES = ROOT.parent / "shared" / "cases"
