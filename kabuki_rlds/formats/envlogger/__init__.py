"""Reads the logs of EnvLogger, which are stored in Riegeli files."""
