"""How much a policy uses each sensor, measured on stored demonstrations, without roll-outs."""
