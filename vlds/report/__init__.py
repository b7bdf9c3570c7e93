"""What is shown after a run: tables, pictures and a page that opens from disk."""

from vlds.report.write import report_text, write_report, write_text

__all__ = ["report_text", "write_report", "write_text"]
