"""Training objectives: losses as pure functions of tensors, and the modules that hold what they train.

`multismolvla.objectives.registry` declares each objective once.
"""
