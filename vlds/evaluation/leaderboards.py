"""Writes what leaderboards take, one file a data set, and reads it back before it has its name."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.data.shards.store import Dataset
from vlds.data.streams.source import Source
from vlds.evaluation.prediction_files import (
    FORMS,
    IN_ZIP,
    Misfit,
    Pairs,
    as_mapping,
    pairs_of,
    value_member,
)
from vlds.evaluation.result import Evaluation
from vlds.runtime.whole_file import whole_file

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
        suffix = FORMS[self.dataset.kind][0]
        if self.dataset.kind in IN_ZIP:
            return value_member(self.dataset.name, self.dataset.split, suffix)
        return f"{self.dataset.label}.{suffix}"

    @property
    def text(self) -> str:
        """What the file holds.

        Errors: Misfit where the data set's ids are not the leaderboard's.
        """
        return FORMS[self.dataset.kind][1](self.pairs)

    def notes(self) -> list[str]:
        """Predictions that the form cannot hold, and what stands for them."""
        held = dict(pairs_of(self.file, self.text))
        odd = [key for key, text in self.pairs if held[key] != text]
        if not odd:
            return []
        becomes = {"nlvr2": "are neither true nor false: written as False"}.get(
            self.dataset.kind, "name no choice: written as -1, which is always wrong"
        )
        return [f"  {len(odd):,} predictions {becomes} ({', '.join(odd[:3])})"]


def parts(source: Source, evaluation: Evaluation) -> Iterator[Part]:
    """A task's predictions data set by data set, with the ids that they have there."""
    several = len(source.datasets) > 1
    for dataset in source.datasets:
        start = f"{dataset.label}/" if several else ""
        own = {k: t for k, t in evaluation.predictions.items() if k.startswith(start)}
        yield Part(
            source.name, dataset, [(key.removeprefix(start), text) for key, text in own.items()]
        )


def write_submissions(
    sources: Sequence[Source], evaluations: Sequence[Evaluation], folder: Path
) -> list[str]:
    """Write every leaderboard's file; lines that say what was written, and what could not be.

    Errors: CannotWrite.
    """
    by_name = {source.name: source for source in sources}
    found = [part for made in evaluations for part in parts(by_name[made.task], made)]
    found = [part for part in found if part.dataset.kind in FORMS]
    files = Counter(part.file for part in found)
    said: list[str] = []
    zips: dict[str, dict[str, str]] = {}
    for part in found:
        # Two tasks may answer one data set: none of their files may be lost.
        start = f"{part.task}-" if files[part.file] > 1 else ""
        try:
            text = part.text
        except Misfit as error:
            said.append(f"no leaderboard's file for {part.dataset.label}: {error}")
            continue
        if part.dataset.kind in IN_ZIP:
            zips.setdefault(start + ZIP, {})[part.file] = text
            said.append(f"{folder / (start + ZIP)}: {part.file}")
        else:
            path = folder / (start + part.file)
            with whole_file(path) as partial:
                partial.write_text(text, encoding="utf-8")
                check(partial.read_text(encoding="utf-8"), part)
            said.append(str(path))
        said += part.notes()
    for name, texts in zips.items():
        write_zip(folder / name, texts)
    return said


def write_zip(path: Path, texts: Mapping[str, str]) -> None:
    """VALUE's zip, and what it holds read back."""
    with whole_file(path) as partial:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        with zipfile.ZipFile(partial) as archive:
            for name, text in texts.items():
                assert archive.read(name).decode() == text


def check(text: str, part: Part) -> None:
    """Every id once, each with its prediction."""
    written = as_mapping(pairs_of(part.file, text), part.file)
    assert list(written) == [key for key, _ in part.pairs]
