"""Files of torch.save, read without running code in them, and in memory of at most their size.

    NAME/data.pkl       values; a tensor names its bytes, offset, size and strides
    NAME/byteorder
    NAME/data/0, 1 ...  bytes of tensors

Before torch 1.6, the same stood one after the other: pickles, then the bytes.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Collection, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vlds.runtime.files import NotAFile, open_file
from vlds.runtime.pickles import NotKnown, Unread, in_short, read_pickle

LARGEST_PROGRAM = 1 << 24
"""Bytes of the pickle; 100,000 tensors take fewer."""
MOST_TENSORS = 200_000
MOST_DIMENSIONS = 64
CHUNK = 1 << 22
MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a file before torch 1.6."""
STORAGES = {
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip
"""What the pickle calls types of numbers."""


def read_torch(file: Path, unread: Collection[str] = ()) -> Any:
    """The content of a file of torch.save: tensors, numbers, texts, lists and dictionaries.
    `unread`: names of classes whose instances nobody reads; `Unread` stands for each.

    Errors: ValueError if it holds anything else, or is not a complete file.
    """
    try:
        with open_file(file) as opened:
            return _TorchFile(opened, unread).read()
    except FileNotFoundError:
        raise ValueError(f"--from: no such file: {file}") from None
    except NotAFile:
        raise
    except NotKnown as error:
        raise ValueError(
            f"{file} holds more than tensors ({error.name}) and was not opened: it could run any "
            "program. If you trust it, save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # damaged bytes raise anything
        raise ValueError(
            f"{file} is not a complete file of torch.save ({in_short(error)}); copy it again, or "
            "name another"
        ) from None


class _TorchFile:
    """An open file, and what of it is known so far."""

    def __init__(self, opened: BufferedReader, unread: Collection[str]) -> None:
        self.opened = opened
        self.left = os.fstat(opened.fileno()).st_size
        """Bytes that further storages can have."""
        self.storages: dict[str, bytearray] = {}
        self.num_tensors = 0
        self.known: dict[str, Callable[..., Any] | None] = {
            **dict.fromkeys(STORAGES),
            **{name: lambda *_: Unread() for name in unread},
            "collections.OrderedDict": lambda: {},
            "torch.Size": lambda size: size,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }

    def read(self) -> Any:
        """The content."""
        if not zipfile.is_zipfile(self.opened):
            return self.read_old()
        with zipfile.ZipFile(self.opened) as archive:
            names = archive.namelist()
            (pickle,) = (n for n in names if n.count("/") == 1 and n.endswith("/data.pkl"))
            folder = pickle.removesuffix("data.pkl")
            with archive.open(pickle) as opened:
                content = read_pickle(
                    BytesIO(opened.read(LARGEST_PROGRAM)), self.known, self.storage
                )
            if (order := f"{folder}byteorder") in names:
                with archive.open(order) as opened:
                    check_order(opened.read(10) == b"little")
            for key, data in self.storages.items():
                member = archive.getinfo(f"{folder}data/{key}")
                if member.file_size != len(data):
                    raise ValueError(f"{member.filename} does not have {len(data)} bytes")
                with archive.open(member) as opened:
                    fill(data, opened)
        return content

    def read_old(self) -> Any:
        """The content of a file before torch 1.6."""
        self.opened.seek(0)
        stream = BytesIO(self.opened.read(LARGEST_PROGRAM))
        if read_pickle(stream, {}) != MAGIC:
            raise ValueError("it begins with another value")
        read_pickle(stream, {})  # the version, 1001
        check_order(read_pickle(stream, {})["little_endian"])
        content = read_pickle(stream, self.known, self.storage)
        read_pickle(stream, {})  # the keys of the storages, sorted
        self.opened.seek(stream.tell())
        for _, data in sorted(self.storages.items()):
            self.opened.seek(8, os.SEEK_CUR)  # how many numbers
            fill(data, self.opened)
        return content

    def storage(self, description: list[Any]) -> Tensor:
        """Numbers in one dimension, which are read later."""
        _, kind, key, _, size, *view = description
        dtype = STORAGES[kind.name]
        if type(key) is not str or type(size) is not int or any(part is not None for part in view):
            raise ValueError("a storage that torch does not write")
        num_bytes = size * dtype.itemsize
        if key not in self.storages:
            # Before memory is asked for; several could lie in the same bytes of the file.
            if not 0 <= num_bytes <= self.left:
                raise ValueError(f"{num_bytes} bytes of numbers, more than the file has")
            self.left -= num_bytes
            self.storages[key] = bytearray(num_bytes)
        data = self.storages[key]
        if len(data) != num_bytes:
            raise ValueError(f"the storage {key} with two sizes")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def tensor(
        self, storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
    ) -> Tensor:
        """A tensor in a storage; torch checks that it lies there."""
        self.num_tensors += 1
        if self.num_tensors > MOST_TENSORS or len(size) > MOST_DIMENSIONS:
            raise ValueError(f"more than {MOST_TENSORS:,} tensors, or {MOST_DIMENSIONS} dimensions")
        # Lists would be repeated by the product.
        if any(type(number) is not int for number in (offset, *size, *stride)):
            raise ValueError("a size that is no number")
        # One that repeats numbers could be larger than the file.
        if math.prod(size) > len(storage):
            raise ValueError(f"a tensor {size} of {len(storage)} numbers")
        return storage.as_strided(size, stride, offset)


def check_order(little_endian: bool) -> None:
    """Errors: ValueError for a file of a machine with another order of bytes."""
    if little_endian is not True:
        raise ValueError("its numbers are big-endian")


def fill(data: bytearray, source: IO[bytes]) -> None:
    """Read just as many bytes.

    Errors: EOFError if the file ends before.
    """
    for start in range(0, len(data), CHUNK):
        piece = source.read(min(CHUNK, len(data) - start))
        if len(piece) != min(CHUNK, len(data) - start):
            raise EOFError("it ends within a tensor")
        data[start : start + len(piece)] = piece


def read_state_dict(
    file: Path, unread: Collection[str] = (), inside: str | None = None
) -> dict[str, Tensor]:
    """Name -> tensor of a .pth or .bin file, without the `module.` of DistributedDataParallel.
    `unread`: as in `read_torch`; `inside`: the file's entry that is the state dict, if it has it.

    Errors: ValueError if the file holds anything else.
    """
    content = read_torch(file, unread)
    if inside is not None and isinstance(content, dict):
        content = content.get(inside, content)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict: name another")
    state: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{file}: the entry {str(key)[:80]!r} is a {type(tensor).__name__}, and a state "
                "dict has tensors alone: save model.state_dict()"
            )
        bare = key.removeprefix("module.")
        if bare in state:
            raise ValueError(f"{file}: {bare} stands there with and without `module.`")
        state[bare] = tensor
    return state
