"""Write the report: a page, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlds.report.compute.bootstrap import RESAMPLES
from vlds.report.compute.collect import report_on
from vlds.report.compute.report import Report
from vlds.report.read.inputs import RunInputs
from vlds.report.render.markdown import markdown
from vlds.report.render.page import build_page
from vlds.report.render.tidy import csv_text
from vlds.runtime.disk import check_writable
from vlds.runtime.whole_file import write_whole

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
