"""Riegeli, the record format of EnvLogger logs, read without its C++ library."""
