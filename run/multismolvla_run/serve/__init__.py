"""``multismolvla-serve``: the policy on one machine, the robot at another, through LeRobot's robot client."""
