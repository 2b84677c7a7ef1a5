"""LeRobotDataset tools: record scripted demonstrations with all modalities."""
