"""The version of the package, defined here alone."""

VERSION = "0.1.0"
