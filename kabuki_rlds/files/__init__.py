"""Paths, locks, signals, and atomic writes of files and folders."""
