"""The gallery: an example a card, with what each run said of it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vlds.data.shards.open_picture import open_picture
from vlds.report.compute.collect import Report
from vlds.report.read.samples import SMALL_PICTURE, GalleryEntry
from vlds.runtime.regular_file import read_file


@dataclass(frozen=True)
class CardPicture:
    """A picture of a card; without data where the file is gone."""

    name: str
    data: str = ""
    """A data: URL."""
    width: int = 0
    height: int = 0

    @property
    def tiny(self) -> bool:
        """Shown enlarged, with hard edges."""
        return max(self.width, self.height) < SMALL_PICTURE


@dataclass(frozen=True)
class Card:
    """One example."""

    id: str
    prompt: str
    references: list[str]
    pictures: list[CardPicture]
    said: dict[str, GalleryEntry] = field(default_factory=dict)
    """Run -> what it said."""


def gallery(report: Report) -> dict[str, list[Card]]:
    """Cards of each task; the same example (task, id, prompt, reference) of several runs is one."""
    cards: dict[str, dict[tuple[str, str, str], Card]] = {}
    for name, run in report.runs.items():
        for entry in run.run.gallery:
            asked = (entry.id, entry.prompt, str(entry.reference))
            of_task = cards.setdefault(entry.task, {})
            if asked not in of_task:
                shown = [picture(run.run.folder / image) for image in entry.images]
                of_task[asked] = Card(entry.id, entry.prompt, reference_lines(entry), shown)
            of_task[asked].said[name] = entry
    return {task: list(of_task.values()) for task, of_task in cards.items()}


def reference_lines(entry: GalleryEntry) -> list[str]:
    """The reference as lines; at most five of them."""
    given = [entry.reference] if isinstance(entry.reference, str) else list(entry.reference)
    return given[:5] + (["..."] if len(given) > 5 else [])


def picture(path: Path) -> CardPicture:
    """A picture inside the page."""
    if not path.is_file():
        return CardPicture(path.name)
    data = read_file(path)
    with open_picture(data) as image:
        kind, size = Image.MIME[image.format or "PNG"], image.size
    encoded = base64.b64encode(data).decode()
    return CardPicture(path.name, f"data:{kind};base64,{encoded}", *size)
