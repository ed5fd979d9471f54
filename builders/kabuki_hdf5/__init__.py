"""The dataset builder for Kabuki files that `tfds build` runs."""
