"""How the policy feeds the objectives of `multismolvla.objectives`, and where it keeps what they train."""
