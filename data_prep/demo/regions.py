"""Names of the cells of the demo's pictures, for grounded captions and visual grounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from data_prep.demo.world import CELLS, PIXELS
from data_prep.packing.source import SourceSet


def regions_of(gqa: SourceSet) -> SourceSet:
    """The pictures of a world's GQA, each with one annotation: the names of its cells."""
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
        column, row = (
            int((thing[start] + thing[size] / 2) / PIXELS * CELLS)
            for start, size in (("x", "w"), ("y", "h"))
        )
        names[row * CELLS + column] = f"{thing['attributes'][0]} {thing['name']}"
    return names
