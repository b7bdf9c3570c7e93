"""Starts ranks, supervises them, restarts a failed run, and ends each rank with the right code."""
