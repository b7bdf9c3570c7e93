"""Writes the files that leaderboards take, one for each data set."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.data.shards.store import Dataset
from vlds.data.streams.source import Source
from vlds.evaluation.prediction_files import (
    IN_ZIP,
    SUFFIXES,
    Misfit,
    Pairs,
    pairs_of,
    submission_text,
    value_member,
)
from vlds.evaluation.result import Evaluation
from vlds.metrics.exact_match import lower_line
from vlds.runtime.whole_file import whole_file, write_whole

ZIP = "value.zip"


@dataclass(frozen=True)
class Part:
    """The predictions of one task for one data set."""

    task: str
    dataset: Dataset
    pairs: Pairs

    @property
    def file(self) -> str:
        """Name of its file, or of its member in VALUE's zip."""
        kind, dataset = self.dataset.kind, self.dataset
        if kind in IN_ZIP:
            return value_member(kind, dataset.name, dataset.split)
        return f"{dataset.label}.{SUFFIXES[kind]}"

    def notes(self, text: str) -> list[str]:
        """Predictions that the form cannot hold, and what its text has instead."""
        written = dict(pairs_of(self.file, text))
        meant = dict(self.pairs)
        instead = "name no choice: written as -1, which is always wrong"
        if self.dataset.kind == "nlvr2":
            meant = {key: lower_line(text) for key, text in meant.items()}
            instead = "are neither true nor false: written as False"
        changed = [key for key, prediction in meant.items() if written[key] != prediction]
        if not changed:
            return []
        return [f"  {len(changed):,} predictions {instead} ({', '.join(changed[:3])})"]


def parts_of(source: Source, evaluation: Evaluation) -> Iterator[Part]:
    """A task's predictions data set by data set, with the ids that they have there."""
    for dataset in source.datasets:
        start = f"{dataset.label}/" if len(source.datasets) > 1 else ""
        pairs = [
            (key.removeprefix(start), prediction)
            for key, prediction in evaluation.predictions.items()
            if key.startswith(start)
        ]
        yield Part(source.name, dataset, pairs)


def write_submissions(
    sources: Sequence[Source], evaluations: Sequence[Evaluation], folder: Path
) -> list[str]:
    """Write every leaderboard's file; returns lines that say what was written, and what could not
    be.

    Errors: CannotWrite.
    """
    by_name = {source.name: source for source in sources}
    parts = [part for e in evaluations for part in parts_of(by_name[e.task], e)]
    parts = [part for part in parts if part.dataset.kind in SUFFIXES]
    files = Counter(part.file for part in parts)
    lines: list[str] = []
    zips: dict[str, dict[str, str]] = {}
    for part in parts:
        # Two tasks may answer one data set; neither file may replace the other.
        start = f"{part.task}-" if files[part.file] > 1 else ""
        try:
            text = submission_text(part.dataset.kind, part.pairs)
        except Misfit as error:
            lines.append(f"no leaderboard's file for {part.dataset.label}: {error}")
            continue
        if part.dataset.kind in IN_ZIP:
            zips.setdefault(start + ZIP, {})[part.file] = text
            lines.append(f"{folder / (start + ZIP)}: {part.file}")
        else:
            path = folder / (start + part.file)
            write_whole(path, text)
            lines.append(str(path))
        lines += part.notes(text)
    for name, texts in zips.items():
        with (
            whole_file(folder / name) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for member, text in texts.items():
                archive.writestr(member, text)
    return lines
