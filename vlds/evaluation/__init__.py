"""Answer, score, write predictions: on all ranks, or from files of predictions."""
