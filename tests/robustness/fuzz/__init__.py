"""Long searches for what breaks the package: scripts, beside the test suite, which runs a little of each."""
