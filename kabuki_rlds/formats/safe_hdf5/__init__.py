"""Opens HDF5 files from strangers: refuses what would crash the HDF5 library, or reach outside of the file."""
