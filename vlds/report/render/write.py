"""Write the report's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlds.report.compute.bootstrap import RESAMPLES
from vlds.report.compute.collect import Report, check_runs, collect
from vlds.report.render.markdown import markdown
from vlds.report.render.page import build_page
from vlds.report.render.picture import picture_bytes
from vlds.report.render.tidy import csv_text
from vlds.runtime.disk import check_writable
from vlds.runtime.whole_file import write_whole

TEXTS: Mapping[str, Callable[[Report], str]] = {"md": markdown, "csv": csv_text}
"""Formats that are text, by their suffix."""


def write_report(
    run_folders: Sequence[Path], folder: Path, resamples: int = RESAMPLES
) -> list[Path]:
    """Write report.html and report.png about one or several runs; returns their paths.

    Errors: ValueError where a folder holds no run or is named twice, or `folder` cannot be written.
    """
    check_runs(run_folders)
    check_writable(folder, "--out")
    report = collect(run_folders, resamples, pictures=True)
    page, picture = folder / "report.html", folder / "report.png"
    write_whole(page, build_page(report))
    write_whole(picture, picture_bytes(report))
    return [page, picture]


def write_text(
    run_folders: Sequence[Path], folder: Path, suffix: str, resamples: int = RESAMPLES
) -> list[Path]:
    """Write report.md or report.csv; returns its path.

    Errors: as write_report.
    """
    check_runs(run_folders)
    check_writable(folder, "--out")
    path = folder / f"report.{suffix}"
    write_whole(path, report_text(run_folders, suffix, resamples))
    return [path]


def report_text(run_folders: Sequence[Path], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report as text of a format of TEXTS.

    Errors: as write_report.
    """
    return TEXTS[suffix](collect(run_folders, resamples))
