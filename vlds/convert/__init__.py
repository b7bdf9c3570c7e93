"""Other layouts of a run's weights."""
