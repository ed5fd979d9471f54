"""The tests. This is a package so that `tests.datasets` does not shadow another module named `datasets`."""
