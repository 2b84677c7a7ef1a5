"""Dataset tools of MultiSmolVLA."""
