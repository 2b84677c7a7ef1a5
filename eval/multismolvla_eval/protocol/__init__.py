"""Which conditions a level has, which episodes a run consists of, and whom a fault reaches."""
