"""What a run does before its first step, to begin from better weights."""
