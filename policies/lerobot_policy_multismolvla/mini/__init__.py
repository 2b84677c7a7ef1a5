"""What only the mini preset needs: tiny foundation models, trained from the recorded frames."""
