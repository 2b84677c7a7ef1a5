"""LeRobot policy plugin of MultiSmolVLA."""
