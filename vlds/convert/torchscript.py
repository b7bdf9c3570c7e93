"""The tensors of a TorchScript archive (torch.jit.save), read without running its code.

OpenAI publishes CLIP so. torch opens such a file only as a program. Here its pickle is read, in
which objects are plain holders of their attributes, and the tensors' bytes, which lie beside it:

    NAME/data.pkl       objects; a tensor names its bytes
    NAME/data/0, 1 ...  bytes of tensors
    NAME/code/...       the program, which is not read
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PICKLE = "data.pkl"
CONSTANTS = "constants.pkl"
"""torch.save's files have no such member."""
STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""What the pickle calls types of numbers."""
CLASSES = "__torch__"
"""Modules of the program's own classes begin so."""
SAME = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}
"""Functions of torch.jit._pickle that return their argument."""


class Holder:
    """An object of the program: its attributes."""


def is_torchscript(file: Path) -> bool:
    """True for an archive of torch.jit.save."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith(f"/{CONSTANTS}") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Name -> tensor, of the parameters and buffers of the module that the archive holds.

    Errors: ValueError if the archive is damaged, or names anything but tensors and its own classes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (member,) = (n for n in archive.namelist() if n.count("/") == 1 and n.endswith(PICKLE))
            root = Reader(archive, member.removesuffix(PICKLE)).load()
            return dict(tensors_in(root, ""))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: {error}; it was not opened, name another file") from None
    except Exception as error:  # damaged bytes raise anything
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ValueError(
            f"{file} is not a complete TorchScript archive ({reason}); copy it again"
        ) from None


class Reader(pickle.Unpickler):
    """Reads an archive's pickle."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}{PICKLE}")))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        # pickle comes here for each name of a class or function, and only so can it run code.
        if module.partition(".")[0] == CLASSES:
            return Holder
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in SAME:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return untagged
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run any program")

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, in one dimension."""
        _, dtype, key, _, size = pid
        if key not in self.storages:
            member = self.archive.getinfo(f"{self.folder}data/{key}")
            expected = size * dtype.itemsize
            # torch compresses nothing. Before reading: a small archive could unfold to any size.
            if member.file_size != expected or member.compress_type != zipfile.ZIP_STORED:
                raise OSError(f"{member.filename} does not have {expected} bytes as they are")
            data = bytearray(self.archive.read(member))
            self.storages[key] = (
                torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def rebuild(
    storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> Tensor:
    """A tensor's numbers of a storage; torch checks that they lie in it.

    Errors: OSError for a tensor that repeats them, and so is larger than the file.
    """
    if math.prod(size) > len(storage):
        raise OSError(f"a tensor {tuple(size)} of {len(storage)} numbers")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def untagged(value: Any, _: str) -> Any:
    """A container, without the name of its type."""
    return value


def tensors_in(value: Any, name: str) -> list[tuple[str, Tensor]]:
    """The tensors of an object and of the modules in it, by their paths."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if not isinstance(value, Holder):
        return []
    start = f"{name}." if name else ""
    return [
        found for key, part in vars(value).items() for found in tensors_in(part, f"{start}{key}")
    ]
