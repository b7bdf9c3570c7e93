"""vlds: vision-and-language models, tuned by a few percent of their weights, with DeepSpeed."""
