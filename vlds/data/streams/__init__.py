"""Streams: sources, loader workers, batches, and the state from which a stream resumes."""
