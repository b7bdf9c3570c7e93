"""Ranks, engine, loop, run state and evaluation."""
