"""Commands about packed data sets: index, count, list answers, train a tokenizer, simulate."""
