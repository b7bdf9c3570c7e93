"""The gallery: a card for each example, with every run's prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlds.data.shards.thumbnail import PagePicture, page_picture
from vlds.report.compute.report import Report
from vlds.report.read.samples import GalleryEntry
from vlds.runtime.regular_file import read_file


@dataclass(frozen=True)
class Card:
    """One example."""

    id: str
    prompt: str
    references: list[str]
    pictures: dict[str, PagePicture | None]
    """Name of the file -> picture; None where the file is gone."""
    predictions: dict[str, GalleryEntry] = field(default_factory=dict)
    """Run -> its prediction."""


def gallery(report: Report) -> dict[str, list[Card]]:
    """Cards of each task; the same example (task, id, prompt, reference) of several runs is one."""
    cards: dict[str, dict[tuple[str, str, str], Card]] = {}
    for name, run in report.runs.items():
        for entry in run.inputs.gallery:
            asked = (entry.id, entry.prompt, str(entry.reference))
            of_task = cards.setdefault(entry.task, {})
            if asked not in of_task:
                files = [run.inputs.folder / image for image in entry.images]
                pictures = {
                    file.name: page_picture(read_file(file)) if file.is_file() else None
                    for file in files
                }
                of_task[asked] = Card(entry.id, entry.prompt, reference_lines(entry), pictures)
            of_task[asked].predictions[name] = entry
    return {task: list(of_task.values()) for task, of_task in cards.items()}


def reference_lines(entry: GalleryEntry) -> list[str]:
    """The reference as lines; at most five of them."""
    given = [entry.reference] if isinstance(entry.reference, str) else list(entry.reference)
    return given[:5] + (["..."] if len(given) > 5 else [])
