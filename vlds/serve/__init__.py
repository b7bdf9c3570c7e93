"""`vlds predict --serve`: one run stays open and answers questions, on a page and as JSON."""
