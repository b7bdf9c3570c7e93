"""Precomputed features: HDF5 and NumPy files -> float16 arrays.

The layouts of VL-T5, VL-Adapter and VALUE: one HDF5 file per picture, or one for all pictures with
a group per picture, each with an array `features`; one .npz per picture or clip with `features` or
`feat`; one .npy per picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlds.runtime.regular_file import LARGEST_FILE

HDF5 = (".h5", ".hdf5")
ENDINGS = (*HDF5, ".npz", ".npy")
ARRAYS = ("features", "feat")
"""Names of the array in a file with several."""
ELSEWHERE = "a link, or values of another file"
"""HDF5 can refer to files outside of the folder that the user gives."""
DAMAGED = "missing or damaged"
FLOAT16_MAX = float(np.finfo(np.float16).max)


class BadFeatures(Exception):
    """Unusable features; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of one picture or clip are stored."""

    path: Path
    name: str
    """Of the picture: its group, if the file holds several."""
    frames: int | None = None
    """Rows to return: a shorter clip is padded with zeros, a longer one pooled over time."""

    def read(self) -> np.ndarray:
        """(tokens, dim) float16.

        Errors: BadFeatures.
        """
        array = self.array()
        if array.ndim < 2 or not array.size or array.dtype.kind != "f":
            raise BadFeatures(f"not a matrix of numbers: {array.dtype} {array.shape}")
        array = array.reshape(-1, array.shape[-1])
        if not (np.abs(array) <= FLOAT16_MAX).all():
            raise BadFeatures("not finite in float16")
        return fit(array.astype(np.float16), self.frames)

    def annotated(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The annotation with what the file says about the picture: nothing."""
        return annotation

    def array(self, name: str | None = None) -> np.ndarray:
        """An array of the file; by default the features.

        Errors: BadFeatures.
        """
        try:
            return np.asarray(self._load(name))
        except BadFeatures:
            raise
        except Exception:  # damaged bytes make NumPy, zipfile and HDF5 raise anything
            raise BadFeatures(DAMAGED) from None

    def _load(self, name: str | None) -> Any:
        if self.path.suffix == ".npy":
            return np.load(self.path, allow_pickle=False)
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as arrays:
                _check_size(max(entry.file_size for entry in arrays.zip.infolist()))
                return arrays[name or _array_name(arrays.files)]
        group = _opened(self.path)
        for part in filter(None, self.name.split("/")):
            group = _member(group, part)
        array = _member(group, name or _array_name(list(group)))
        if array.is_virtual or array.external:
            raise BadFeatures(ELSEWHERE)
        _check_size(array.nbytes)
        return array[()]

    def __str__(self) -> str:
        if self.path.suffix not in ENDINGS:  # no file of any ending exists
            return f"{self.path} ({', '.join(ENDINGS)})"
        return f"{self.path}" if self.path.stem == self.name else f"{self.name} in {self.path}"


@lru_cache(maxsize=4)
def _opened(path: Path) -> Any:
    """An HDF5 file, kept open: it may hold all pictures, and opening takes longer than reading.
    Pre-training reads three in turns."""
    return _hdf5().File(path, "r")


def _member(group: Any, name: str) -> Any:
    """A member of an HDF5 group. Links are not followed: they may lead to any file of this machine,
    and HDF5 would wait forever on a named pipe."""
    link = group.get(name, getlink=True)
    if link is None:
        raise BadFeatures(DAMAGED)
    if not isinstance(link, _hdf5().HardLink):
        raise BadFeatures(ELSEWHERE)
    return group[name]


def _check_size(num_bytes: int) -> None:
    """Refuse to unpack huge arrays: a few bytes can stand for any number of zeros."""
    if num_bytes > LARGEST_FILE:
        raise BadFeatures(f"more than {LARGEST_FILE:,} bytes")


def _array_name(names: list[str]) -> str:
    return next((name for name in ARRAYS if name in names), ARRAYS[0])


def fit(array: np.ndarray, frames: int | None) -> np.ndarray:
    """(n, dim) -> (frames, dim): pad with zeros, or take the maximum over stretches of about equal
    length, as torch's adaptive_max_pool1d and VL-Adapter do."""
    if frames is None or len(array) == frames:
        return array
    if len(array) < frames:
        return np.pad(array, ((0, frames - len(array)), (0, 0)))
    edges = [(n * len(array) // frames, -(-(n + 1) * len(array) // frames)) for n in range(frames)]
    return np.stack([array[start:end].max(0) for start, end in edges])


def locate(place: Path, name: str, frames: int | None = None) -> FeatureFile:
    """Features of one picture or clip in a folder or file; `find_missing` checks that they
    exist."""
    if place.is_file():
        return FeatureFile(place, name, frames)
    paths = (place / f"{name}{ending}" for ending in ENDINGS)
    path = next((path for path in paths if path.is_file()), place / name)
    return FeatureFile(path, name, frames)


def find_missing(files: Iterable[FeatureFile]) -> list[FeatureFile]:
    """The files that do not exist.

    Errors: ValueError if h5py is needed and not installed, or an HDF5 file with many pictures
    cannot be opened.
    """
    groups_of = cache(_groups)

    def exists(file: FeatureFile) -> bool:
        if not file.path.is_file():
            return False
        if file.path.suffix in HDF5:
            _hdf5()
            return file.path.stem == file.name or file.name in groups_of(file.path)
        return True

    return [file for file in files if not exists(file)]


def _groups(path: Path) -> set[str]:
    """The pictures in an HDF5 file."""
    try:
        with _hdf5().File(path, "r") as opened:
            return set(opened)
    except OSError as error:
        raise ValueError(f"--features {path} cannot be opened as HDF5: {error}") from error


def _hdf5() -> Any:
    """The optional package h5py."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "features in HDF5 need the package h5py: pip install 'vlds[features]'"
        ) from None
    return h5py
