"""How others lay out their demonstrations in HDF5, each as a source: one module a layout."""
