"""Devices of LeRobot's plugin interface that are simulated: an arm in the mini suite.

The configurations are imported with the package, which LeRobot imports with every command; the devices only
when one is made.
"""
