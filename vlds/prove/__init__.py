"""Shows on a user's own model and data that what vlds computes is right: `vlds prove`."""
