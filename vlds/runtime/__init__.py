"""What all rooms share: files, processes, ranks, the terminal."""
