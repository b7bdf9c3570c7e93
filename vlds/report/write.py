"""Write the report's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.report.gallery import collect_gallery
from vlds.report.page import build_report
from vlds.report.picture import write_picture


def write_report(run_folders: Sequence[Path], folder: Path) -> list[Path]:
    """Write report.html and report.png about one or several runs; returns their paths.

    Errors: ValueError where a folder holds no run.
    """
    page, picture = folder / "report.html", folder / "report.png"
    for run in run_folders:
        collect_gallery(run)
    text = build_report(list(run_folders))
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    write_picture(run_folders, picture)
    return [page, picture]
