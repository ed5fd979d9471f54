"""Limits on the counts that a dataset states.

A number in a text file says how much memory is allocated, so each is held against a limit that no real dataset reaches.
SECURITY.md lists them.
"""

#: Bytes of a file or an attribute that is parsed as a whole: `features.json`, `dataset_info.json` and the like.
MAX_JSON_BYTES = 16 << 20
#: Features of a dataset, and features that contain one another.
MAX_FEATURES = 100_000
MAX_DEPTH = 64
#: Classes of a label.
MAX_CLASSES = 1_000_000
#: Splits and shards of a dataset.
MAX_SHARDS = 100_000
#: Bytes of one row of a field, by the dimensions of its shape that are fixed.
MAX_ROW_BYTES = 1 << 28
#: Bytes of one row of a field whose shape is stated but that has no value anywhere: each row is padding.
MAX_PADDED_BYTES = 64 << 10
