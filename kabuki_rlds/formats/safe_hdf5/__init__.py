"""Opens untrusted HDF5 files. Rejects files that would crash or hang the HDF5 library, or that refer to other files."""
