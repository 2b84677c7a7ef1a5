"""Core of MultiSmolVLA: the 4M-21 encoder, tower, connector, dropout, corruption and losses.

Torch only. Nothing in here imports LeRobot, the simulator or the network, so that every piece can be tested
and reused on its own; ``policies/``, ``envs/``, ``data/`` and ``eval/`` import this package.
"""
