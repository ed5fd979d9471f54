"""RLDS datasets out of Kabuki HDF5 files, by `tfds build`.

    tfds build builders/kabuki_hdf5 --config '{"name": "hopper", "path": "/data/hopper.hdf5"}' --data_dir DIR

makes `DIR/kabuki_hdf5/hopper/1.0.0`. The work is done by `kabuki_rlds`, which is to be
installed with the extra `build`: `pip install 'kabuki_rlds[build]'`.
"""

from kabuki_rlds.commands.tfds_builder import KabukiBuilder, KabukiConfig


class Builder(KabukiBuilder):
    """Builds a dataset from the files that the config names."""

    # TFDS takes a config in JSON only where a builder has configs of its own.
    BUILDER_CONFIGS = [KabukiConfig(name="no_files")]  # noqa: RUF012  # TFDS's attribute
