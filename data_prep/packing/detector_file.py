"""A detector's features with their boxes and names, as VL-T5 and LXMERT store them: HDF5 groups or
.npz files with `features`, `boxes` (x1, y1, x2, y2 in pixels), `img_w`, `img_h`, and the numbers of
predicted objects and attributes, `obj_id` and `attr_id`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.json_rows import clean, open_text
from data_prep.packing.feature_file import BadFeatures, FeatureFile, locate

VOCABULARIES = {"obj_id": "objects_vocab.txt", "attr_id": "attributes_vocab.txt"}
"""Array of numbers -> the file with their names, as the detector's authors publish it."""


@dataclass(frozen=True)
class DetectorFile(FeatureFile):
    """Where the boxes of one picture are stored."""

    num_box_channels: ClassVar[int] = 4

    vocabulary: Path | None = None
    """Folder of the names; None: annotations get none."""

    def read(self) -> np.ndarray:
        """(tokens, dim + 4) float16: the features of each box, then its x1, x2, y1, y2 as shares of
        the picture's width and height.

        The visual embedding computes an area from this order. The original code stores x1, y1, x2,
        y2, so that its fifth number, (y2 - x2) (y1 - x1), is no area. Errors: BadFeatures.
        """
        features = super().read()
        boxes, width, height = (self.array(name) for name in ("boxes", "img_w", "img_h"))
        if boxes.shape != (len(features), self.num_box_channels) or boxes.dtype.kind not in "fiu":
            raise BadFeatures(f"boxes of shape {boxes.shape} for {len(features)} features")
        for size in (width, height):
            if size.size != 1 or size.dtype.kind not in "fiu" or not 0 < size.item() < np.inf:
                raise BadFeatures("no width and height of the picture")
        shares = boxes[:, [0, 2, 1, 3]] / np.array([width, width, height, height], float).ravel()
        if not np.isfinite(shares).all():
            raise BadFeatures("boxes are not finite")
        return np.concatenate([features, shares.clip(0, 1).astype(np.float16)], 1)

    def annotated(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The annotation with a name for each box, "ATTRIBUTE OBJECT".

        Errors: BadFeatures.
        """
        if self.vocabulary is None:
            return annotation
        words = []
        for array_name, file_name in VOCABULARIES.items():
            names, numbers = names_in(self.vocabulary / file_name), self.array(array_name)
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise BadFeatures(f"{array_name} is {numbers.dtype} {numbers.shape}")
            if not ((numbers >= 0) & (numbers < len(names))).all():
                raise BadFeatures(f"{array_name} has numbers outside of {file_name}")
            words.append([names[number] for number in numbers.tolist()])
        objects, attributes = words
        if len(objects) != len(attributes):
            raise BadFeatures(f"{len(objects)} objects, {len(attributes)} attributes")
        regions = [f"{of} {thing}" for of, thing in zip(attributes, objects, strict=True)]
        return {**annotation, "regions": regions}


@cache
def names_in(path: Path) -> tuple[str, ...]:
    """The names of a vocabulary: of "cat,kitty", the first. A process reads each file once.

    Errors: ValueError if the file is missing or has an empty line.
    """
    with open_text(path) as file:
        names = tuple(clean(line.split(",")[0]).lower() for line in file)
    if not names or "" in names:
        raise ValueError(f"{path}: line {names.index('') + 1 if names else 1} has no name")
    return names


def locate_boxes(place: Path, name: str, vocabulary: Path | None = None) -> DetectorFile:
    """Features and boxes of one picture in a folder or file."""
    file = locate(place, name)
    return DetectorFile(file.path, file.name, vocabulary=vocabulary)
