"""Limits on sizes and counts that a file states.

Such a number decides how much memory is allocated, so a damaged or hostile file could exhaust the memory. No real
dataset reaches these limits. SECURITY.md lists them.
"""

#: Size of a file or attribute that is parsed as a whole: `features.json`, `dataset_info.json` and others.
MAX_JSON_BYTES = 16 << 20
#: Number of features of a dataset, and nesting depth of features. Protobuf takes 33 levels, and HDF5 files 32 groups.
MAX_FEATURES = 100_000
MAX_DEPTH = 24
#: Number of classes of a label.
MAX_CLASSES = 1_000_000
#: Number of splits plus number of shards of a dataset.
MAX_SHARDS = 100_000
#: Size of a row of a field, computed from the fixed dimensions of its shape.
MAX_ROW_BYTES = 1 << 28
#: Size of the record of an episode in an RLDS dataset. Protobuf cannot parse a message of 2 GiB.
MAX_RECORD_BYTES = (1 << 31) - (1 << 20)
#: Decoded size of a record batch of an Arrow file.
MAX_ARROW_BATCH_BYTES = 1 << 28
#: Size of a row of a field that has a shape but no values, so that every row is padding.
MAX_PADDED_BYTES = 64 << 10
