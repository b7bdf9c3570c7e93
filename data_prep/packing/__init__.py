"""From samples that name pictures to shards."""
