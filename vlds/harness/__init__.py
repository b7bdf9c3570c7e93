"""Lets other programs' benchmarks ask a run: lmms-eval and VLMEvalKit."""
