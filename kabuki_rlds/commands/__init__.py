"""The functions of the public API that process datasets: convert, build, export, validate, compare and inspect."""
