"""Checks that a model or tokenizer exists, in a folder or on the Hugging Face hub, before it is
read.

The hub is asked once: the libraries that download from it retry for minutes without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vlds.pretrained.files import SourceError

TIMEOUT_S = 5.0
FILES = ("config.json", "model.safetensors")
"""One of these is in the cache after a model was downloaded."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json",
)  # fmt: skip
"""A folder with a tokenizer of any class has one of these."""
BUSY = 429
"""HTTP status; it and higher ones are temporary, so the libraries may try again."""
LOCAL = "name a folder that holds the model"


def check_source(source: str, field: str, local: str = LOCAL) -> None:
    """Check that a model is a local path, is cached or can be downloaded. `local`: what to name
    instead of a hub name.

    Errors: SourceError that begins with `field`.
    """
    if not Path(source).exists():
        _check_name(source, field, local)


@cache
def _check_name(name: str, field: str, local: str) -> None:
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)
        if not constants.is_offline_mode():
            HfApi().model_info(name, timeout=TIMEOUT_S)
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


def check_tokenizer(source: str, field: str, files: Sequence[str], what: str = "tokenizer") -> None:
    """Check that a tokenizer, or a processor, exists locally or can be downloaded. `files`: names
    of files in its folder, and suffixes (.model) of files that hold a whole tokenizer.

    Without this check, transformers would create an empty tokenizer for a folder that holds none,
    and would look on the hub for the path of a file that it cannot read.

    Errors: SourceError that begins with `field`.
    """
    path = Path(source)
    suffixes = [name for name in files if name.startswith(".")]
    names = [name for name in files if name not in suffixes]
    or_file = "".join(f"a {suffix} file or " for suffix in suffixes)
    cure = f"name {or_file}a folder that holds {' or '.join(names)}"
    if path.suffix in suffixes and not path.exists():
        raise SourceError(f"{field}: no such file: {source}; {cure}")
    check_source(source, field, cure)
    if path.is_file() and path.suffix not in suffixes:
        raise SourceError(f"{field}: {source} is not a {what}; {cure}")
    if path.is_dir() and not any((path / name).is_file() for name in names):
        raise SourceError(f"{field}: no {what} in the folder {source}; {cure}")
