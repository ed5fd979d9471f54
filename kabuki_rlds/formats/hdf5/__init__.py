"""The Kabuki HDF5 file: its layout, a source and a sink."""
