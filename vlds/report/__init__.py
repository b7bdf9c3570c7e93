"""What is shown after a run: tables, and a page that opens from disk."""
