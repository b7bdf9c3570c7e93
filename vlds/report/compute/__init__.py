"""What a report says of runs: scores, intervals, baselines, facts."""
