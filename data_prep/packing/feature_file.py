"""Features that somebody has computed before: HDF5 and NumPy files -> float16 arrays.

The forms that are met in VL-T5, VL-Adapter and VALUE: one HDF5 file per picture, or one for all,
with a group per picture that holds `features`; an .npz per picture or clip with `features` or
`feat`; an .npy per picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlds.runtime.regular_file import LARGEST_FILE

HDF5 = (".h5", ".hdf5")
ENDINGS = (*HDF5, ".npz", ".npy")
ARRAYS = ("features", "feat")
"""What the array is called in a file that holds several."""
ELSEWHERE = "a link, or values of another file"
"""HDF5 can name files that are outside of the folder that the user gives."""
DAMAGED = "missing or damaged"
FLOAT16_MAX = float(np.finfo(np.float16).max)


class BadFeatures(Exception):
    """Features that cannot be used; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of one picture or clip lie."""

    path: Path
    name: str
    """Of the picture: its group, where the file holds several."""
    frames: int | None = None
    """Make it so many rows: zeros after a shorter clip, a longer one pooled over time."""

    def read(self) -> np.ndarray:
        """(tokens, dim) float16.

        Errors: BadFeatures.
        """
        try:
            array = np.asarray(self._load())
        except BadFeatures:
            raise
        except Exception:  # NumPy, zipfile and HDF5 raise whatever damaged bytes lead them to
            raise BadFeatures(DAMAGED) from None
        if array.ndim < 2 or not array.size or array.dtype.kind != "f":
            raise BadFeatures(f"not a matrix of numbers: {array.dtype} {array.shape}")
        array = array.reshape(-1, array.shape[-1])
        if not (np.abs(array) <= FLOAT16_MAX).all():
            raise BadFeatures("not finite in float16")
        return fit(array.astype(np.float16), self.frames)

    def _load(self) -> Any:
        if self.path.suffix == ".npy":
            return np.load(self.path, allow_pickle=False)
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as arrays:
                name = _array_of(arrays.files)
                _check_size(max(entry.file_size for entry in arrays.zip.infolist()))
                return arrays[name]
        group = _opened(self.path)
        for part in filter(None, self.name.split("/")):
            group = _member(group, part)
        array = _member(group, _array_of(list(group)))
        if array.is_virtual or array.external:
            raise BadFeatures(ELSEWHERE)
        _check_size(array.nbytes)
        return array[()]

    def __str__(self) -> str:
        if self.path.suffix not in ENDINGS:  # none of these was there
            return f"{self.path} ({', '.join(ENDINGS)})"
        return f"{self.path}" if self.path.stem == self.name else f"{self.name} in {self.path}"


@lru_cache(maxsize=1)
def _opened(path: Path) -> Any:
    """An HDF5 file: it may hold all pictures, and opening takes longer than reading."""
    return hdf5().File(path, "r")


def _member(group: Any, name: str) -> Any:
    """What a group of HDF5 holds under a name. A link is not followed: it may lead to any file of
    this machine, and HDF5 would wait for ever on a named pipe."""
    link = group.get(name, getlink=True)
    if link is None:
        raise BadFeatures(DAMAGED)
    if not isinstance(link, hdf5().HardLink):
        raise BadFeatures(ELSEWHERE)
    return group[name]


def _check_size(num_bytes: int) -> None:
    """A few bytes can stand for any number of zeros."""
    if num_bytes > LARGEST_FILE:
        raise BadFeatures(f"more than {LARGEST_FILE:,} bytes")


def _array_of(names: list[str]) -> str:
    return next((name for name in ARRAYS if name in names), ARRAYS[0])


def fit(array: np.ndarray, frames: int | None) -> np.ndarray:
    """(n, dim) -> (frames, dim): zeros behind, or the maximum over stretches of about equal length,
    as torch's adaptive_max_pool1d and VL-Adapter do it."""
    if frames is None or len(array) == frames:
        return array
    if len(array) < frames:
        return np.pad(array, ((0, frames - len(array)), (0, 0)))
    edges = [(n * len(array) // frames, -(-(n + 1) * len(array) // frames)) for n in range(frames)]
    return np.stack([array[start:end].max(0) for start, end in edges])


def locate(place: Path, name: str, frames: int | None = None) -> FeatureFile:
    """Features of one picture or clip; a file that is not there is found out when it is read."""
    if place.is_file():
        return FeatureFile(place, name, frames)
    found = (place / f"{name}{ending}" for ending in ENDINGS)
    path = next((path for path in found if path.is_file()), place / name)
    return FeatureFile(path, name, frames)


def find_missing(files: Iterable[FeatureFile]) -> list[FeatureFile]:
    """Those that are not there.

    Errors: ValueError where files are HDF5 and the package for it is not installed, or where one
    that holds many pictures cannot be opened.
    """
    missing = []
    groups: dict[Path, set[str]] = {}
    for file in files:
        is_hdf5 = file.path.suffix in HDF5
        if not file.path.is_file():
            missing.append(file)
        elif is_hdf5 and file.path.stem != file.name:  # one file that holds many pictures
            if file.path not in groups:
                groups[file.path] = _groups(file.path)
            if file.name not in groups[file.path]:
                missing.append(file)
        elif is_hdf5:
            hdf5()
    return missing


def _groups(path: Path) -> set[str]:
    """The pictures in a file."""
    try:
        with hdf5().File(path, "r") as opened:
            return set(opened)
    except OSError as error:
        raise ValueError(f"--features {path} cannot be opened as HDF5: {error}") from error


def hdf5() -> Any:
    """The package h5py.

    Errors: ValueError where it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "features in HDF5 need the package h5py: pip install 'vlds[features]'"
        ) from None
    return h5py
