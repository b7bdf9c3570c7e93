"""Weights, configs and tokenizers that a recipe names: local folders, files and hub names."""
