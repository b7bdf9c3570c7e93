"""The demo's pictures: one to three colored shapes in a 3x3 grid of cells, 48 pixels wide.

Two worlds draw such scenes. The tiny backbone is pretrained on `home`, whose grounds are dark to
middle greys: an encoder that has seen a single ground is blind on another. In `shifted` the ground
is black and all texts use other words (text.py), so that a frozen model fails.

Two sets of classes are pictures of one thing, in folders that are called what they show: `looks`,
six colors x the four shapes, which the captions of `home` name; and `figures`, six colors x four
figures that no other picture and no text has. A model that learned from the captions meets nothing
new in `looks`, and in `figures` known colors of unknown figures. Sorted by name, the first half of
the classes has the colors blue, cyan and green, the second half the same shapes in purple, red and
yellow: base and new classes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import cos, pi, sin
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from ..classes.class_set import class_sets
from ..classes.forms import read_folders
from ..packing.source import SourceSet

PIXELS = 48
CELLS = 3
MOST_THINGS = 3

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "green": (40, 200, 65),
    "blue": (35, 90, 235),
    "yellow": (235, 205, 40),
    "cyan": (40, 225, 225),
    "purple": (165, 45, 225),
}
"""Each fits its names in both worlds: this blue is also sapphire, this yellow also golden."""

SHAPES = ("circle", "square", "triangle", "cross")
FIGURES = ("bar", "diamond", "ring", "star")
"""Only in pictures of classes."""
RADII = {"small": 5, "large": 7}
"""In pixels: a thing stays within its cell of 16, so that columns tell what is left of what."""


@dataclass(frozen=True)
class World:
    """A world by the look of its scenes."""

    name: str
    ground: tuple[int, int]
    """Darkest and brightest grey of the ground; each picture draws its own."""


HOME = World("home", ground=(30, 120))
SHIFTED = World("shifted", ground=(0, 20))
WORLDS = (HOME, SHIFTED)


Look = tuple[str, str]
"""Color and shape of a thing."""


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    size: str
    column: int
    row: int
    jitter: tuple[int, int]

    @property
    def look(self) -> Look:
        return self.color, self.shape

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, all inclusive."""
        # A small thing around x = 8: from 3 to 12, ten pixels.
        radius = RADII[self.size]
        cell = PIXELS // CELLS
        x = self.column * cell + cell // 2 + self.jitter[0]
        y = self.row * cell + cell // 2 + self.jitter[1]
        return x - radius, y - radius, x + radius - 1, y + radius - 1


Scene = tuple[Thing, ...]
"""Sorted by column from left to right, then from top to bottom."""

LOOKS: tuple[Look, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)


def make_scene(rng: Random, looks: list[Look]) -> Scene:
    """Put a thing of each look into its own cell, in a random size."""
    cells = rng.sample(range(CELLS * CELLS), len(looks))
    things = []
    for (color, shape), cell in zip(looks, cells, strict=True):
        size = rng.choice(tuple(RADII))
        # How far the thing may move within its cell.
        room = PIXELS // CELLS // 2 - RADII[size]
        jitter = (rng.randint(-room, room), rng.randint(-room, room))
        # Cells are counted row by row: 5 lies in column 2 of row 1.
        things.append(Thing(color, shape, size, cell % CELLS, cell // CELLS, jitter))
    return tuple(sorted(things, key=lambda thing: (thing.column, thing.row)))


def random_looks(rng: Random, fewest: int = 1) -> list[Look]:
    """Up to three looks. One often repeats a color or a shape, so that there is more to count."""
    looks = [rng.choice(LOOKS)]
    for _ in range(rng.randint(fewest, MOST_THINGS) - 1):
        color, shape = rng.choice(LOOKS)
        like = rng.choice(looks)
        pick = rng.random()
        if pick < 0.2:
            color = like[0]
        elif pick < 0.4:
            shape = like[1]
        looks.append((color, shape))
    return looks


def random_scene(rng: Random, fewest: int = 1) -> Scene:
    """A scene of `fewest` to three things."""
    return make_scene(rng, random_looks(rng, fewest))


def draw(scene: Scene, world: World, rng: Random) -> bytes:
    """A JPEG of the scene; colors vary a little from thing to thing."""
    shade = rng.randint(*world.ground)
    image = Image.new("RGB", (PIXELS, PIXELS), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for thing in scene:
        # A model cannot tell things by an exact color.
        red, green, blue = (value + rng.randint(-20, 20) for value in COLORS[thing.color])
        _draw_shape(pen, thing, (red, green, blue))
    buffer = io.BytesIO()
    # Subsampled chroma would blur the colors of things of ten pixels.
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, paint: tuple[int, int, int]) -> None:
    left, top, right, bottom = thing.box
    middle, center = (left + right) / 2, (top + bottom) / 2
    radius = (right - left) / 2
    if thing.shape == "circle":
        pen.ellipse(thing.box, fill=paint)
    elif thing.shape == "square":
        pen.rectangle(thing.box, fill=paint)
    elif thing.shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=paint)
    elif thing.shape == "cross":
        # Of 10 pixels, 3 on each side of a bar of 4.
        arm = (right - left + 1) // 3
        pen.rectangle((left, top + arm, right, bottom - arm), fill=paint)
        pen.rectangle((left + arm, top, right - arm, bottom), fill=paint)
    elif thing.shape == "bar":
        pen.rectangle((left, center - radius / 3, right, center + radius / 3), fill=paint)
    elif thing.shape == "ring":
        pen.ellipse(thing.box, outline=paint, width=round(radius / 2))
    else:  # a diamond's four corners, or a star's points and, nearer to the center, its notches
        num_points, inner = (4, 1.0) if thing.shape == "diamond" else (10, 0.4)
        points = []
        for number in range(num_points):
            reach = radius * (1.0 if number % 2 == 0 else inner)
            angle = 2 * pi * number / num_points
            points.append((middle + reach * sin(angle), center - reach * cos(angle)))
        pen.polygon(points, fill=paint)


def scene_graph(scene: Scene, first_id: int, call: Callable[[str], str]) -> dict[str, Any]:
    """The scene in the form of GQA's official scene graphs; `call` names colors and shapes."""
    ids = [str(first_id + number) for number in range(len(scene))]
    objects = {}
    # The box's right and bottom pixels belong to it, hence the 1 in its width and height.
    for number, thing in zip(ids, scene, strict=True):
        left, top, right, bottom = thing.box
        objects[number] = {
            "name": call(thing.shape),
            "attributes": [call(thing.color), thing.size],
            "x": left,
            "y": top,
            "w": right - left + 1,
            "h": bottom - top + 1,
            "relations": [
                {"name": "to the left of", "object": other_number}
                for other_number, other in zip(ids, scene, strict=True)
                if thing.column < other.column
            ],
        }
    return {"width": PIXELS, "height": PIXELS, "objects": objects}


CLASS_SETS: Mapping[str, tuple[str, ...]] = {"looks": SHAPES, "figures": FIGURES}
SCENES_PER_PICTURE = 200
"""The number of --scenes for which each class gets one more picture."""
FEWEST = 5
SHARES = {"val": 0.2, "test": 0.4}
"""The rest is for training: with the usual number of scenes, 24 pictures a class."""


def write_class_set(folder: Path, name: str, scenes: int, seed: int) -> None:
    """Draw the pictures of all splits: SPLIT/CLASS/NUMBER.jpg."""
    rng = Random(f"{seed} {name}")
    total = max(FEWEST, scenes // SCENES_PER_PICTURE)
    # 60 pictures of a class -> 24 for training, 12 val, 24 test.
    counts = {split: round(share * total) for split, share in SHARES.items()}
    counts["train"] = total - sum(counts.values())
    for split, count in counts.items():
        for color in COLORS:
            for shape in CLASS_SETS[name]:
                place = folder / split / f"{color} {shape}"
                place.mkdir(parents=True)
                for number in range(count):
                    scene = make_scene(rng, [(color, shape)])
                    (place / f"{number:04d}.jpg").write_bytes(draw(scene, HOME, rng))


def parse_class_set(folder: Path, name: str) -> Iterator[SourceSet]:
    """Read the folders back as those of a user."""
    source = read_folders(folder, None, "train", Counter())
    yield from class_sets(source, f"demo-{name}", None)


def regions_of(gqa: SourceSet) -> SourceSet:
    """The pictures of a world's GQA, each with one annotation: the names of its cells, for grounded
    captions and visual grounding."""
    samples = [
        replace(
            sample,
            annotations=[
                {"id": f"{sample.id}_regions", "regions": cell_names(sample.source["objects"])}
            ],
            source={},
        )
        for sample in gqa.samples
    ]
    return replace(gqa, name="regions", kind="regions", samples=samples, dropped=())


def cell_names(things: Iterable[Mapping[str, Any]]) -> list[str]:
    """Color and shape of the thing in each cell, row by row; "" for empty cells."""
    names = [""] * CELLS**2
    for thing in things:
        # The cell that holds the middle of the thing's box.
        column, row = (
            int((thing[start] + thing[size] / 2) / PIXELS * CELLS)
            for start, size in (("x", "w"), ("y", "h"))
        )
        names[row * CELLS + column] = f"{thing['attributes'][0]} {thing['name']}"
    return names
