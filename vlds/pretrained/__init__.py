"""Checks and loads the pretrained weights, configs and tokenizers that a recipe names."""
