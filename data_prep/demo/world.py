"""The demo's pictures: one to three colored shapes in a 3x3 grid of cells, 48 pixels wide.

Two worlds draw such scenes. The tiny backbone is pretrained on `home`, whose grounds are dark to
middle greys: an encoder that has seen a single ground is blind on another. In `shifted` the ground
is black and all texts use other words (phrases.py), so that a frozen model fails.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random
from typing import Any

from PIL import Image, ImageDraw

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
"""Only in pictures of classes (class_pictures.py)."""
RADII = {"small": 5, "large": 7}
"""In pixels: a thing stays within its cell of 16, so that columns tell what is left of what."""
JPEG_QUALITY = 95


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
    """One colored shape."""

    color: str
    shape: str
    size: str
    column: int
    row: int
    jitter: tuple[int, int]

    @property
    def look(self) -> Look:
        """Color and shape."""
        return self.color, self.shape

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, all inclusive."""
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
        room = PIXELS // CELLS // 2 - RADII[size]
        jitter = (rng.randint(-room, room), rng.randint(-room, room))
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
        red, green, blue = (value + rng.randint(-20, 20) for value in COLORS[thing.color])
        _draw_shape(pen, thing, (red, green, blue))
    buffer = io.BytesIO()
    # Subsampled chroma would blur the colors of things of ten pixels.
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, paint: tuple[int, int, int]) -> None:
    left, top, right, bottom = thing.box
    if thing.shape == "circle":
        pen.ellipse(thing.box, fill=paint)
    elif thing.shape == "square":
        pen.rectangle(thing.box, fill=paint)
    elif thing.shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=paint)
    elif thing.shape in FIGURES:
        _draw_figure(pen, thing, paint)
    else:
        arm = (right - left + 1) // 3
        pen.rectangle((left, top + arm, right, bottom - arm), fill=paint)
        pen.rectangle((left + arm, top, right - arm, bottom), fill=paint)


def _draw_figure(pen: ImageDraw.ImageDraw, thing: Thing, paint: tuple[int, int, int]) -> None:
    left, top, right, bottom = thing.box
    middle, center = (left + right) / 2, (top + bottom) / 2
    radius = (right - left) / 2
    if thing.shape == "bar":
        pen.rectangle((left, center - radius / 3, right, center + radius / 3), fill=paint)
    elif thing.shape == "ring":
        pen.ellipse(thing.box, outline=paint, width=round(radius / 2))
    else:
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
