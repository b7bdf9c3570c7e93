"""Reads files of other people without ever running code in them.

PyTorch's files are pickles, and a pickle may run any program when it is opened. Here they are
opened with `weights_only`, which makes tensors and plain containers and refuses the rest.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlds.runtime.checks import not_finite
from vlds.runtime.json_record import read_record

REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""In torch's message about a class or function that its safe reader refuses."""
STATE_DICT = "If you trust it, save its weights alone: torch.save(model.state_dict(), FILE)"
"""The cure for files with more than weights."""


def read_torch(file: Path, allowed: Sequence[Any] = (), cure: str = STATE_DICT) -> Any:
    """The content of a file of torch.save: tensors, numbers, texts, containers, and instances of
    the `allowed` classes.

    Errors: ValueError if it holds anything else, with the cure, or is not a complete file.
    """
    check_file(file)
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (refused := REFUSED.search(str(error))) is None:
            raise damaged(file, error) from None
        raise ValueError(
            f"{file} holds more than tensors ({refused[1]}) and was not opened: it could run any "
            f"program. {cure}"
        ) from None
    except Exception as error:  # torch trusts files to be complete; others raise almost anything
        raise damaged(file, error) from None


def damaged(file: Path, error: Exception) -> ValueError:
    """What to say of a file that cannot be read."""
    text = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
    return ValueError(
        f"{file} is not a complete file of torch.save ({text[:120] or type(error).__name__}); "
        "copy it again, or name another"
    )


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of a .pth or .bin file, without the `module.` of DistributedDataParallel.

    Errors: ValueError if the file holds anything else.
    """
    content = read_torch(file)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict: name another")
    state: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{file}: the entry {str(key)[:80]!r} is a {type(tensor).__name__}, and a state "
                "dict has tensors alone: save model.state_dict()"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{file}: {key} is not a plain tensor; save it dense and in floats")
        bare = key.removeprefix("module.")
        if bare in state:
            raise ValueError(f"{file}: {bare} stands there with and without `module.`")
        state[bare] = tensor
    return state


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor.

    Errors: ValueError if the file is missing or damaged.
    """
    check_file(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({error}); copy it again"
        ) from None


def read_weights(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of the files that the folder has; safetensors or torch.save's.

    Errors: ValueError if it has none.
    """
    for name in names:
        if (folder / name).is_file():
            safe = name.endswith(".safetensors")
            return (read_safetensors if safe else read_state_dict)(folder / name)
    raise ValueError(f"--from: {folder} has none of {', '.join(names)}; name another folder")


def read_settings(file: Path) -> dict[str, Any]:
    """A json file that holds settings by name.

    Errors: ValueError if it is missing or holds anything else, or a number that is not finite.
    """
    check_file(file)
    settings = read_record(dict[str, Any], file, "name another folder")
    for name, value in not_finite(settings):
        raise ValueError(f"{file}: {name} is {value}; give it a finite number, or copy it again")
    return settings


def check_file(file: Path) -> None:
    """Errors: ValueError if there is no such file."""
    if file.is_dir():
        raise ValueError(f"--from: {file} is a folder; name a file in it")
    if not file.is_file():
        raise ValueError(f"--from: no such file: {file}")
