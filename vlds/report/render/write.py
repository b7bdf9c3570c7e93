"""Writes the report: a page, Markdown to paste into a repository or an issue, or CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlds.report.compute.bootstrap import RESAMPLES
from vlds.report.compute.collect import report_on
from vlds.report.compute.facts import MADE
from vlds.report.compute.report import Report, RunReport
from vlds.report.read.inputs import RunInputs
from vlds.report.render.page import build_page
from vlds.report.render.table import markdown_table, markdown_text
from vlds.report.render.tables import difference_table, paper_table, short_heads
from vlds.report.render.tidy import csv_text
from vlds.runtime.disk import check_writable
from vlds.runtime.whole_file import write_whole


def markdown(report: Report) -> str:
    """A table of the runs, their differences from the first, and what the brackets mean."""
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


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "html": build_page,
    "md": markdown,
    "csv": csv_text,
}
"""Suffix of the file -> what makes its text."""


def report_text(runs: Sequence[RunInputs], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report in one of FORMATS.

    Errors: ValueError where a run is named twice.
    """
    return FORMATS[suffix](report_on(runs, resamples, pictures=suffix == "html"))


def write_report(
    runs: Sequence[RunInputs], folder: Path, suffix: str = "html", resamples: int = RESAMPLES
) -> Path:
    """Write report.SUFFIX about one or several runs; returns its path.

    Errors: ValueError where a run is named twice, or `folder` cannot be written.
    """
    check_writable(folder, "--out")
    path = folder / f"report.{suffix}"
    write_whole(path, report_text(runs, suffix, resamples))
    return path
