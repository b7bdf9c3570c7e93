"""The doors to files of others that a recipe names: weights, configs and tokenizers, in a folder or
on the Hugging Face hub.

`check_source` and `fetch` ask the hub once: the libraries that download from it retry for minutes
without a network. `reading` says in one line what is wrong with a file: these libraries raise
anything for damaged bytes, and those in Rust even panic, which `except Exception` does not catch.
`open_tensors` opens safetensors. None of the libraries notices a flipped byte in a weight, so
`damaged_source` compares what `vlds convert hf` wrote with the hashes in its manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlds.runtime.files import check_file
from vlds.runtime.json_files import DESCRIPTION, damage, lacks_memory

TIMEOUT_S = 5.0
FILES = ("config.json", "model.safetensors")
"""One of these is in the cache after a model was downloaded."""
WEIGHTS = ("model.safetensors",)
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.bpe", "*.vocab")
"""Patterns of files that are not weights: configs, tokenizers, templates."""
# 429 says "too many requests", 500 and more that the server fails.
BUSY = 429
"""HTTP status; it and higher ones are temporary, so the libraries may try again."""
LOCAL = "name a folder that holds the model"
COPY_AGAIN = "copy it again, or name another"


class SourceError(ValueError):
    """What is wrong with a file that a recipe names, with the cure."""


@contextmanager
def reading(what: str, cure: str = COPY_AGAIN) -> Iterator[None]:
    """Inside, a library reads a user's file.

    Errors: SourceError that begins with `what` for whatever it raises, except a lack of memory.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, SourceError):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        if lacks_memory(error):
            raise
        # Libraries explain an error over many lines. The first one says what it is, unless it
        # only announces the next.
        first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        text = f"{first} {rest[0]}" if rest and first.endswith(":") else first
        reason = f"{type(error).__name__}: {text}"[:200]
        raise SourceError(f"{what} ({reason}); {cure}") from error


def check_source(source: str, field: str, local: str = LOCAL) -> None:
    """Check that a model is a local path, is cached or can be downloaded. `local`: what to name
    instead of a hub name.

    Errors: SourceError that begins with `field`.
    """
    if not Path(source).exists():
        # Names of the hub are NAME or OWNER/NAME.
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise SourceError(f"{field}: no such file or folder: {source}; check the path")
        _check_name(source, field, local)


# A recipe may name one model for weights and tokenizer, and each is checked more than once.
@cache
def _check_name(name: str, field: str, local: str) -> None:
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)
        if not constants.is_offline_mode():
            _ask(name)
        elif not cached:
            raise SourceError(
                f"{field}: {name} is not in Hugging Face's cache, and HF_HUB_OFFLINE forbids a "
                f"download; {local}"
            )
    except SourceError:
        raise
    except HFValidationError:
        raise SourceError(f"{field}: no such file or folder: {name}; check the path") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < BUSY:
            raise SourceError(
                f"{field}: no such folder, and no such model on the Hugging Face hub: {name} "
                f"(HTTP {status}); check the name, or log in with `hf auth login`"
            ) from None
    except Exception:  # its HTTP library may raise anything if the hub does not answer
        if not cached:
            raise SourceError(
                f"{field}: no such folder: {name}, and the Hugging Face hub does not answer; "
                f"{local}, or download it on a machine with a network and set HF_HUB_OFFLINE=1"
            ) from None
        constants.HF_HUB_OFFLINE = True  # else the libraries would ask again for each file


def _ask(name: str) -> None:
    """Ask the hub for a model, for TIMEOUT_S in all. Errors: whatever its library raises."""
    # The library's own limit is that of each address of the hub, and of each read.
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=TIMEOUT_S)
            answers.append(None)
        except Exception as error:
            answers.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if (error := answers[0] if answers else TimeoutError("no answer")) is not None:
        raise error


def fetch(name: str, field: str, local: str, patterns: tuple[str, ...] = CONFIGS) -> Path:
    """The snapshot of a hub name in Hugging Face's cache, with the files of these patterns. All
    that a process fetches for a name is of one snapshot.

    Errors: SourceError that begins with `field`.
    """
    check_source(name, field, local)
    with reading(f"{field}: cannot fetch {name}", local):
        return _snapshot(name, patterns)


@cache
def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    # The branch may move between two downloads: weights are of the commit that was checked.
    commit = None if patterns == CONFIGS else _snapshot(name, CONFIGS).name
    return Path(snapshot_download(name, revision=commit, allow_patterns=list(patterns)))


def damaged_source(source: str) -> str | None:
    """What is wrong with a source in a folder that `vlds convert hf` wrote; None if it is intact or
    elsewhere. Hashes every byte: a second for two GB."""
    path = Path(source)
    # The source may be such a folder, or a file or folder inside one.
    for folder in (path, path.parent):
        if not (folder / DESCRIPTION).is_file():
            continue
        within = path.relative_to(folder).as_posix()
        wrong = damage(folder, within=None if within == "." else within)
        if wrong is not None:
            return f"{folder}: {wrong}; copy the folder again from where it was written"
    return None


@contextmanager
def open_tensors(prefix: str, file: Path) -> Iterator[Any]:
    """Open a safetensors file; its tensors are read one by one.

    Errors: SourceError that begins with `prefix` if the file cannot be read inside.
    """
    with reading(f"{prefix}: {file} is not a whole safetensors file"):
        check_file(file)  # a pipe would block the library for ever
        with safe_open(file, "pt") as opened:
            yield opened


FLOATS = ("F16", "BF16", "F32", "F64")
"""What safetensors calls them. Those of 8 bits are no weights without scales beside them."""


def check_tensors(
    prefix: str, file: Path, wanted: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file can be read, and holds floats where `wanted` does; the shapes
    of its tensors by name.

    Errors: SourceError that begins with `prefix`.
    """
    with open_tensors(prefix, file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        kinds = {name: part.get_dtype() for name, part in slices.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    not_floats = [
        f"{name} is {kind}"
        for name, kind in kinds.items()
        if name in wanted and wanted[name].is_floating_point() and kind not in FLOATS
    ]
    if not_floats:
        raise SourceError(
            f"{prefix}: {file} does not hold weights: {some(not_floats)}, floats of 16 to 64 bits "
            f"expected; {COPY_AGAIN}"
        )
    return shapes


def some(faults: list[str]) -> str:
    """The first fault, and the number of the others."""
    return f"{faults[0]} (and {len(faults) - 1} more)" if len(faults) > 1 else faults[0]


def save_module(module: nn.Module, file: Path) -> str:
    """Write a module's weights; the file's name."""
    # safetensors refuses tensors that are not contiguous, such as transposed weights.
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, file)
    return str(file)
