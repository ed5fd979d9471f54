"""Benchmarks: datasets made on the spot, and what converting them takes."""
