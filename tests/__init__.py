"""The tests. A package, so that `tests.datasets` never stands in for another `datasets`."""
