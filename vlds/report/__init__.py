"""What is shown after a run: tables, pictures and a page that opens from disk."""

from vlds.report.write import write_report

__all__ = ["write_report"]
