"""Start ranks, supervise them, restart a failed run, and what each rank does around its work."""
