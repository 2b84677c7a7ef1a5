"""Data sets on disk: LeRobot's format, LIBERO's HDF5 layout, and where a data set is made."""
