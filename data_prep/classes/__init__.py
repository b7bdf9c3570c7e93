"""Pictures of classes: in folders, in lists and tables, in CIFAR's batches."""
