"""The dataset builder that `tfds build` runs on Kabuki files."""
