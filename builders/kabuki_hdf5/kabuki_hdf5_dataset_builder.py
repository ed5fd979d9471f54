"""A TFDS dataset builder that makes RLDS datasets from Kabuki HDF5 files.

    tfds build builders/kabuki_hdf5 --config '{"name": "hopper", "path": "/data/hopper.hdf5"}' --data_dir DIR

writes `DIR/kabuki_hdf5/hopper/1.0.0`. It needs `kabuki_rlds` with the extra `build`:
`pip install 'kabuki_rlds[build]'`.
"""

from kabuki_rlds.commands.tfds_builder import KabukiBuilder, KabukiConfig


class Builder(KabukiBuilder):
    """Builds a dataset from the Kabuki files named in the config."""

    # TFDS accepts a config in JSON only if the builder defines at least one config.
    BUILDER_CONFIGS = [KabukiConfig(name="no_files")]  # noqa: RUF012  # TFDS's attribute
