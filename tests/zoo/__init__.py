"""HDF5 files of other projects, and generated hostile files, through everything that reads HDF5 files."""
