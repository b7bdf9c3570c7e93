"""Checks that a model or tokenizer exists, in a folder or on the Hugging Face hub, before it is
read, and fetches it.

The hub is asked once: the libraries that download from it retry for minutes without a network.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vlds.pretrained.files import SourceError, reading

TIMEOUT_S = 5.0
FILES = ("config.json", "model.safetensors")
"""One of these is in the cache after a model was downloaded."""
WEIGHTS = ("model.safetensors",)
CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.bpe", "*.vocab")
"""Patterns of files that are not weights: configs, tokenizers, templates."""
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
    commit = None if patterns == CONFIGS else _snapshot(name, CONFIGS).name
    return Path(snapshot_download(name, revision=commit, allow_patterns=list(patterns)))
