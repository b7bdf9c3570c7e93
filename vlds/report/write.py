"""Write the report's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlds.report.bootstrap import RESAMPLES
from vlds.report.collect import Report, check_runs, collect
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

    Errors: ValueError where a folder holds no run or is named twice, or `folder` cannot be written.
    """
    check_runs(run_folders)
    make_folder(folder)
    report = collect(run_folders, resamples, pictures=True)
    page, picture = folder / "report.html", folder / "report.png"
    page.write_text(build_page(report), encoding="utf-8")
    write_picture(report, picture)
    return [page, picture]


def write_text(
    run_folders: Sequence[Path], folder: Path, suffix: str, resamples: int = RESAMPLES
) -> list[Path]:
    """Write report.md or report.csv; returns its path.

    Errors: as write_report.
    """
    check_runs(run_folders)
    make_folder(folder)
    path = folder / f"report.{suffix}"
    path.write_text(report_text(run_folders, suffix, resamples), encoding="utf-8")
    return [path]


def report_text(run_folders: Sequence[Path], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report as text of a format of TEXTS.

    Errors: as write_report.
    """
    return TEXTS[suffix](collect(run_folders, resamples))


def make_folder(folder: Path) -> None:
    """Errors: ValueError where it cannot be made, or is another's."""
    cure = "name another folder with --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made a folder ({error.strerror}); {cure}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: cannot be written to; {cure}")
