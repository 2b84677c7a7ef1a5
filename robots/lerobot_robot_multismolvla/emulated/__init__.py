"""``multismolvla-emulate``: an SO-101 that LeRobot's own drivers connect to, without hardware.

Its motors answer on a pseudo-terminal as they would on USB, and its cameras are processes of their own.
Nothing here imports LeRobot: what it speaks are the devices' protocols.
"""
