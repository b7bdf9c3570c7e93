"""The order of examples: pure functions of (seed, position)."""
