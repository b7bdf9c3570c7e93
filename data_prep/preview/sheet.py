"""A contact sheet as one PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from data_prep.preview.sample import THUMBNAIL, TINY, SampleView, thumbnail

WIDTH = THUMBNAIL
"""Of a column."""
MOST_COLUMNS = 4
GAP = 24
GROUND, INK, FAINT, ANSWER, WRONG = "#ffffff", "#1b1f24", "#5b6470", "#1a6e3c", "#a8321f"
LINE = 19
"""Pixels from one line of text to the next."""
PARTING = 7
"""Pixels between two annotations."""


class Face(NamedTuple):
    """A file of a font, and its size."""

    file: str
    size: int

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font itself."""
        return load_font(self)


PLAIN, BOLD = Face("DejaVuSans.ttf", 14), Face("DejaVuSans-Bold.ttf", 14)
SMALL = Face("DejaVuSans.ttf", 12)


@cache
def load_font(face: Face) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: Latin, Greek and Cyrillic on any machine."""
    import matplotlib  # here, because no other command needs it

    return ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", face.file), face.size
    )


class Line(NamedTuple):
    """One line of text that fits its column."""

    text: str
    face: Face
    color: str
    above: int = 0
    """Pixels that part it from the line before."""

    @property
    def height(self) -> int:
        """With what is above it."""
        return self.above + LINE


class Cell(NamedTuple):
    """One sample: a picture and the lines below it."""

    picture: Image.Image | None
    lines: list[Line]

    @property
    def height(self) -> int:
        """Pixels."""
        above = self.picture.height + GAP // 3 if self.picture else 0
        return above + sum(line.height for line in self.lines)


def sheet_bytes(title: str, counts: str, views: Sequence[SampleView]) -> bytes:
    """Some samples in rows, as a PNG."""
    columns = min(MOST_COLUMNS, len(views))
    width = columns * (WIDTH + GAP) + GAP
    cells = [Cell(_pictures(view), list(_lines(view))) for view in views]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    head = [
        *_wrap(title, BOLD, INK, width - 2 * GAP),
        *_wrap(counts, SMALL, FAINT, width - 2 * GAP),
    ]
    top = GAP + sum(line.height for line in head) + GAP // 2
    height = top + sum(max(cell.height for cell in row) + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, head, GAP, GAP)
    for row in rows:
        for column, cell in enumerate(row):
            left, below = GAP + column * (WIDTH + GAP), top
            if cell.picture:
                sheet.paste(cell.picture, (left, top))
                below += cell.picture.height + GAP // 3
            _write(draw, cell.lines, left, below)
        top += max(cell.height for cell in row) + GAP
    drawn = BytesIO()
    sheet.save(drawn, "PNG")
    return drawn.getvalue()


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[Line], left: int, top: int) -> None:
    for line in lines:
        draw.text((left, top + line.above), line.text, line.color, line.face.font)
        top += line.height


def _lines(view: SampleView) -> Iterator[Line]:
    """Everything that is said about a sample."""
    if view.id:
        yield from _wrap(view.id, BOLD, INK)
    for text in filter(None, (view.facts, view.place)):
        yield from _wrap(text, SMALL, FAINT)
    if view.trouble:
        yield from _wrap(f"cannot be read: {view.trouble}", PLAIN, WRONG)
    for text, answer in view.said:
        lines = [*_wrap(text, PLAIN, INK), *_wrap(answer, PLAIN, ANSWER)]
        yield from (line._replace(above=PARTING) for line in lines[:1])
        yield from lines[1:]
    if view.num_left_out:
        yield from _wrap(f"and {view.num_left_out} more", SMALL, FAINT)


def _wrap(text: str, face: Face, color: str, width: int = WIDTH) -> Iterator[Line]:
    """Lines of at most `width` pixels; a word that is longer is cut."""
    font, line = face.font, ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield Line(line, face, color)
        line = word
        while font.getlength(line) > width:
            fits = next(n for n in range(len(line), 0, -1) if font.getlength(line[:n]) <= width)
            yield Line(line[:fits], face, color)
            line = line[fits:]
    if line:
        yield Line(line, face, color)


def _pictures(view: SampleView) -> Image.Image | None:
    """The pictures side by side, or frames that say what is there instead."""
    shown = [thumbnail(data) or _frame("cannot be decoded", WRONG) for data in view.pictures]
    shown += [_frame(f"features {shape}", FAINT) for shape in view.features]
    if not shown:
        return None
    side = (WIDTH - GAP // 3 * (len(shown) - 1)) // len(shown)
    fitted = [_fit(image, side) for image in shown]
    joined = Image.new("RGB", (WIDTH, max(image.height for image in fitted)), GROUND)
    for place, image in enumerate(fitted):
        joined.paste(image, (place * (side + GAP // 3), 0))
    return joined


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Tiny pictures are enlarged with hard edges, large ones made smaller."""
    if max(image.size) < TINY:
        factor = max(1, min(side, 2 * TINY) // max(image.size))
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    image.thumbnail((side, side))
    return image


def _frame(text: str, color: str) -> Image.Image:
    """A box with words, in the place of a picture."""
    frame = Image.new("RGB", (WIDTH, WIDTH // 3), GROUND)
    draw = ImageDraw.Draw(frame)
    draw.rectangle((0, 0, WIDTH - 1, frame.height - 1), outline=color)
    draw.text((WIDTH // 2, frame.height // 2), text, color, PLAIN.font, anchor="mm")
    return frame
