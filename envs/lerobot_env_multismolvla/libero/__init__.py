"""LIBERO: set-up, files, simulator and initial states."""
