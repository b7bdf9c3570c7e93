"""The gallery in a run folder: gallery/samples.json and its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlds.data.shards.thumbnail import thumbnail
from vlds.runtime.json_record import read_record
from vlds.runtime.whole_file import whole_folder
from vlds.schema import Encoded

GALLERY, SAMPLES = "gallery", "samples.json"
PNG = b"\x89PNG"


@dataclass(frozen=True)
class GalleryEntry:
    """One example to look at."""

    task: str
    id: str
    images: Sequence[str]
    """Paths of the pictures, relative to the run folder."""
    prompt: str
    reference: str | Sequence[str]
    prediction: str
    correct: bool | None = None
    """None if an answer is neither right nor wrong, such as a caption."""
    confidence: float | None = None
    """How sure the model was, as in `Predictions`; None where it was not written down."""


def read_gallery(folder: Path) -> list[GalleryEntry]:
    """The gallery of a run folder; empty where there is none.

    Errors: ValueError naming the file.
    """
    path = folder / GALLERY / SAMPLES
    if not path.is_file():
        return []
    cure = "`vlds report` writes no such samples; remove the file"
    entries = read_record(list[GalleryEntry], path, cure)
    for name in (name for entry in entries for name in entry.images):
        # Somebody else's run must not put our own pictures on a page.
        if (folder / name).resolve().parent != path.parent.resolve():
            raise ValueError(f"{path}: image {name!r} is not in {GALLERY}/; {cure}")
    return entries


def write_gallery(folder: Path, entries: Iterable[tuple[GalleryEntry, Sequence[Encoded]]]) -> None:
    """Write the gallery of a run folder, replacing an older one: the entries, and thumbnails of
    each entry's encoded pictures.

    Errors: CannotWrite.
    """
    with whole_folder(folder / GALLERY) as partial:
        written = []
        for number, (entry, encoded) in enumerate(entries):
            images = []
            for position, data in enumerate(encoded):
                if small := thumbnail(data):
                    suffix = "png" if small.startswith(PNG) else "jpg"
                    name = f"{number:04d}-{position}.{suffix}"
                    (partial / name).write_bytes(small)
                    images.append(f"{GALLERY}/{name}")
            written.append(asdict(entry) | {"images": images})
        text = json.dumps(written, indent=1) + "\n"
        (partial / SAMPLES).write_text(text, encoding="utf-8")
