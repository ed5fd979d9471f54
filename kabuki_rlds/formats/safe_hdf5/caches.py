"""Limits the memory that the HDF5 library takes for its caches.

By default HDF5 2.0 allocates 64 KiB for each open dataset, to find chunks in a cache of 8 MiB, and caches up to 32 MiB
of a file's metadata, which take several times as much in their decoded form. With thousands of datasets these are
gigabytes.
"""

from __future__ import annotations

from typing import Any

import h5py

#: Arguments of `h5py.File`: the cache of chunks of each dataset. (bytes and hash slots: the defaults of HDF5 1.14)
CHUNK_CACHE: dict[str, Any] = {"rdcc_nbytes": 1 << 20, "rdcc_nslots": 521}
#: By HDF5's count. In memory, the metadata take about twelve times as much.
_METADATA_BYTES = 256 << 10
#: With a smaller cache, the library writes metadata all the time. It crashes if the disk is full then.
_WRITTEN_METADATA_BYTES = 2 << 20


def limit_metadata_cache(file: h5py.File) -> h5py.File:
    """Gives the cache of metadata of an open file a fixed size, and returns the file."""
    size = _METADATA_BYTES if file.mode == "r" else _WRITTEN_METADATA_BYTES
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = size
    # The cache does not grow or shrink by itself.
    config.incr_mode = config.flash_incr_mode = config.decr_mode = 0
    file.id.set_mdc_config(config)
    return file
