"""Shards: tar, index, dataset.json, caches, and the decoding of what a sample holds."""
