"""Rows of your own: JSON lines, CSV, LLaVA, ShareGPT, COCO."""
