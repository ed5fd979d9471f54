"""The formats at the two ends of a conversion, a package each."""
