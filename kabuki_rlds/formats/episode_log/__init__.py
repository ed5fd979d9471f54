"""The log of a recording to a Kabuki HDF5 file: whole episodes that the file does not hold yet."""
