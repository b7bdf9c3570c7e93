"""Benchmarks in the forms of evaluation harnesses."""
