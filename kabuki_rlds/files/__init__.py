"""Paths, locks, signals, and files and folders that appear whole or not at all."""
