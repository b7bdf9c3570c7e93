"""What a report reads from run folders."""
