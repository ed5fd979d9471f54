"""Benchmarks of conversion, loading, building and recording, on generated datasets."""
