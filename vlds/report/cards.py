"""The gallery: an example a card, with what each run said of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from vlds.data.open_picture import open_picture
from vlds.report.collect import Report
from vlds.report.confidence import how_sure
from vlds.report.samples import SMALL_PICTURE, GalleryEntry
from vlds.runtime.regular_file import read_file
from vlds.runtime.shown import escape

LONG_TEXT = 220
"""Characters of a text beyond which it is folded."""

Asked = tuple[str, str, str, str]
"""Task, id, prompt, reference: the same of these is the same example."""
Said = Mapping[str, tuple[GalleryEntry, Path]]
"""Run -> what it said of an example, and the folder that holds the pictures."""


def gallery(report: Report) -> str:
    """Sample pictures, task by task; the same example of several runs is one card."""
    examples: dict[Asked, dict[str, tuple[GalleryEntry, Path]]] = {}
    for name, run in report.runs.items():
        for entry in run.run.gallery:
            asked = (entry.task, entry.id, entry.prompt, str(entry.reference))
            examples.setdefault(asked, {})[name] = (entry, run.run.folder)
    tasks = dict.fromkeys(asked[0] for asked in examples)
    several = len(report.runs) > 1
    return "".join(
        f'<h3>{escape(task)}</h3><div class="gallery">'
        + "".join(card(said, several) for asked, said in examples.items() if asked[0] == task)
        + "</div>"
        for task in tasks
    )


def card(said: Said, several: bool) -> str:
    """Pictures, prompt, reference and predictions of one example."""
    entry, folder = next(iter(said.values()))
    pictures = "".join(picture(folder / name, entry.id) for name in entry.images)
    shown = f'<div class="pictures">{pictures}</div>' if pictures else ""
    answers = "".join(
        f"<dt>{escape(name) if several else 'model'}</dt><dd>{prediction(entry)}</dd>"
        for name, (entry, _) in said.items()
    )
    return (
        f'<figure class="sample">{shown}<figcaption><dl>'
        f"<dt>input</dt><dd>{text(entry.prompt)}</dd>"
        f"<dt>answer</dt><dd>{answer(entry)}</dd>{answers}</dl></figcaption></figure>"
    )


def answer(entry: GalleryEntry) -> str:
    """What was to be said."""
    lines = [text(line) for line in reference_lines(entry)]
    if len(lines) == 1:
        return lines[0]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def prediction(entry: GalleryEntry) -> str:
    """What a run said, whether it is right, and how sure the model was."""
    words = text(entry.prediction) if entry.prediction else "(nothing)"
    sure = ""
    if entry.confidence is not None:
        sure = f'<span class="sure">{how_sure(entry.confidence)}</span>'
    return " ".join(filter(None, [words, mark(entry.correct), sure]))


def text(words: str) -> str:
    """Text of any language in its own direction; a long one is folded behind its beginning."""
    whole = f'<bdi dir="auto">{escape(words)}</bdi>'
    if len(words) <= LONG_TEXT:
        return whole
    start = escape(words[: LONG_TEXT // 2].rstrip())
    return f'<details><summary><bdi dir="auto">{start} ...</bdi></summary>{whole}</details>'


def reference_lines(entry: GalleryEntry) -> list[str]:
    """The reference as lines; at most five of them."""
    given = [entry.reference] if isinstance(entry.reference, str) else list(entry.reference)
    return given[:5] + (["..."] if len(given) > 5 else [])


def mark(correct: bool | None) -> str:
    """Right or wrong in a word, a sign and a colour."""
    if correct is None:
        return ""
    kind, sign = ("right", "&#10003;") if correct else ("wrong", "&#10007;")
    return f'<span class="mark {kind}">{sign} {kind}</span>'


def picture(path: Path, alternative: str) -> str:
    """A picture inside the page; a word in its place where the file is gone."""
    if not path.is_file():
        return f'<span class="faint">{escape(path.name)} is missing</span>'
    data = read_file(path)
    with open_picture(data) as image:
        kind, size = Image.MIME[image.format or "PNG"], image.size
    tiny = ' class="tiny"' if max(size) < SMALL_PICTURE else ""
    encoded = base64.b64encode(data).decode()
    return (
        f'<img{tiny} width="{size[0]}" height="{size[1]}" alt="picture of {escape(alternative)}" '
        f'src="data:{kind};base64,{encoded}">'
    )
