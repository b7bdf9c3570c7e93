"""How answers are written: token by token, by beam search, or as the best of a list."""
