"""The report as Markdown tables, to paste into a paper's repository, an issue or a page."""

from __future__ import annotations

from vlds.report.compute.facts import MADE
from vlds.report.compute.report import Report, RunReport
from vlds.report.render.table import markdown_table, markdown_text
from vlds.report.render.tables import difference_table, paper_table, short_heads


def markdown(report: Report) -> str:
    """Runs beside each other, their differences to the first, and what the brackets are."""
    data = "; ".join(f"{task}: {text}" for task, text in report.data_texts.items())
    blocks = [markdown_table(paper_table(report))]
    blocks += [f"Data: {markdown_text(data)}."] if data else []
    differences = difference_table(report, [f"minus {report.baseline}", *short_heads(report)])
    blocks += [markdown_table(differences)] if differences.rows else []
    lines = list(report.interval_notes)
    lines += [f"{name}: {note}" for name, run in report.runs.items() for note in run.notes]
    lines += [f"{name}: {made}" for name, run in report.runs.items() if (made := how_made(run))]
    blocks += map(markdown_text, lines)
    return "\n\n".join(blocks) + "\n"


def how_made(run: RunReport) -> str:
    """When, where and with what a run was trained, in one line."""
    names = ("seed", *MADE)
    known = (name for name in names if name in run.facts)
    return "; ".join(f"{name} {run.facts[name]}" for name in known)
