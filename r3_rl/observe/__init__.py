"""What a run leaves behind: metrics, kept trajectories, intervals, the live line and the report."""
