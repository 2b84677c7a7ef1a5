"""Any LeRobot policy, or a baseline without weights, behind one interface."""
