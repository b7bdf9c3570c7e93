"""Few-shot methods on a tiny CLIP: the model, the rows and the runs of `clip_demo.py`."""
