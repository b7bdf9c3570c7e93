"""`preview`: look at samples in the terminal, as a page or as a picture."""
