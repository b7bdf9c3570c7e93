"""Stored features: members of a sample that are .npy files of (tokens, dim)."""

from __future__ import annotations

import io
from ast import literal_eval
from functools import lru_cache
from typing import Any

import numpy as np

FEATURES = "features.npy"
"""End of the members' extensions."""
FEATURE_TYPE = np.dtype("<f2")
MAGIC = b"\x93NUMPY"


def feature_bytes(array: np.ndarray) -> bytes:
    """Features (tokens, dim) as the member that `parse_features` reads."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, FEATURE_TYPE))
    return buffer.getvalue()


def parse_features(data: memoryview) -> np.ndarray:
    """A .npy file as float16 without a copy (np.load costs five times as much).

    Errors: ValueError where it is something else, or not whole.
    """
    start, shape, dtype = npy_header(data)
    features = np.frombuffer(data[start:], dtype).reshape(shape)
    return features.astype(FEATURE_TYPE, copy=False)


def npy_header(data: memoryview) -> tuple[int, tuple[int, int], np.dtype[Any]]:
    """Where the values of a .npy file begin, their shape (tokens, dim) and type.

    Errors: ValueError where it is something else.
    """
    if data[:6] != MAGIC or data[6] not in (1, 2):
        raise ValueError("not a .npy file")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    return start, *_shape_and_type(bytes(data[8 + width : start]))


@lru_cache(maxsize=256)
def _shape_and_type(text: bytes) -> tuple[tuple[int, int], np.dtype[Any]]:
    try:
        fields = literal_eval(text.decode("latin1"))
        turned, dtype, shape = fields["fortran_order"], np.dtype(fields["descr"]), fields["shape"]
        plain = all(isinstance(size, int) and size >= 0 for size in shape)
    except (SyntaxError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"the header of the .npy file is damaged ({error!r})") from None
    if turned or dtype.kind != "f":
        raise ValueError("features must be a row-major array of floats")
    if len(shape) != 2 or not plain:
        raise ValueError(f"features of shape {shape}, (tokens, dim) expected")
    return shape, dtype
