"""What is shown after a run: tables, pictures and a page that opens from disk."""
