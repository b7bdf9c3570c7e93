"""Write the report's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlds.report.bootstrap import RESAMPLES
from vlds.report.collect import Report, collect
from vlds.report.markdown import markdown
from vlds.report.page import build_page
from vlds.report.picture import write_picture
from vlds.report.tidy import csv_text

TEXTS: Mapping[str, Callable[[Report], str]] = {"md": markdown, "csv": csv_text}
"""Formats that are text, by their suffix."""


def write_report(
    run_folders: Sequence[Path], folder: Path, resamples: int = RESAMPLES
) -> list[Path]:
    """Write report.html and report.png about one or several runs; returns their paths.

    Errors: ValueError where a folder holds no run, or is named twice.
    """
    report = collect(run_folders, resamples, pictures=True)
    page, picture = folder / "report.html", folder / "report.png"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(build_page(report), encoding="utf-8")
    write_picture(report, picture)
    return [page, picture]


def report_text(run_folders: Sequence[Path], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report as text of a format of TEXTS.

    Errors: as write_report.
    """
    return TEXTS[suffix](collect(run_folders, resamples))
