"""LeRobot environment plugin of MultiSmolVLA."""
