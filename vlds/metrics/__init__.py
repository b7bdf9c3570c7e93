"""Metrics: pure functions from text to a number. They know no task, no file and no tensor."""
