"""RLDS datasets as TFDS stores them: a source and a sink."""
