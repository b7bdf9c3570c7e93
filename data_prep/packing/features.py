"""A data set with stored features in the place of its pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_prep.packing.feature_file import HDF5, BadFeatures, locate
from data_prep.packing.source import SourceSample, SourceSet


def with_features(dataset: SourceSet, place: Path) -> SourceSet:
    """The same data set with features from `place` (a folder, or one HDF5 file) instead of
    pictures, found by the pictures' names.

    Errors: ValueError where `place` is not there, or a file for one picture.
    """
    if not place.exists():
        raise ValueError(f"--features {place} does not exist; give a folder or an HDF5 file")
    if place.is_file() and place.suffix not in HDF5:
        raise ValueError(
            f"--features {place}: one file for all pictures must be HDF5 ({', '.join(HDF5)}); of "
            "files for one picture each give the folder"
        )
    samples = [
        replace(
            sample,
            images=(),
            features=tuple(locate(place, picture.stem) for picture in sample.images),
        )
        for sample in dataset.samples
    ]
    return replace(dataset, samples=samples)


def common_shape(samples: list[SourceSample]) -> tuple[int, int] | None:
    """Shape of the first features that can be read; None where none can."""
    for sample in samples:
        for file in sample.features:
            try:
                tokens, dim = file.read().shape
            except BadFeatures:
                continue
            return tokens, dim
    return None
