"""The demo's two sets of classes: pictures of one thing, in folders that are called what they show.

    looks     six colors x the four shapes of the demo's worlds, which the captions of `home` name
    figures   six colors x four figures that no other picture and no text of the demo has

A model that learned from the captions meets nothing new in `looks`, and in `figures` known colors
of unknown figures. Sorted by name, the first half of the classes has the colors blue, cyan and
green, the second half the same shapes in purple, red and yellow: base and new classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from data_prep.classes.class_set import class_sets
from data_prep.classes.folders import read_folders
from data_prep.demo.world import COLORS, FIGURES, HOME, SHAPES, draw, make_scene
from data_prep.packing.source import SourceSet

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
