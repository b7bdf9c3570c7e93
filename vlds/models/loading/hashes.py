"""Hashes of what a model is read from, by which a run tells whether its sources are the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from vlds.models.loading.model_files import reading
from vlds.runtime.json_files import sha256

WORD_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
WORD_NAMES = re.compile(r"token|vocab|merges|process|template|\.model$")
"""What the files of tokenizers and processors are called."""


def hash_source(source: str) -> str:
    """sha256 over a file, or over a folder's weight files and config; over the name if it is not
    local.

    Errors: SourceError for a file that cannot be read, such as a link that leads nowhere.
    """
    # Not the tokenizer: `hash_processor` has it, and a run may take another one.
    return hash_files(
        source, lambda f: f.suffix in {".safetensors", ".bin"} or f.name == "config.json"
    )


def hash_processor(source: str) -> str:
    """sha256 over the files of a tokenizer or processor, which may lie beside weights; over the
    name if it is not local. Errors: as `hash_source`."""
    return hash_files(
        source, lambda f: f.suffix in WORD_FILES and WORD_NAMES.search(f.name) is not None
    )


def hash_files(source: str, belongs: Callable[[Path], bool]) -> str:
    """sha256 over names and bytes of a file, or of the files of a folder that belong; over the name
    if there are none, as for a name on the hub."""
    path = Path(source)
    # Sorted, since the order of a folder's entries differs between file systems.
    inside = sorted(filter(belongs, path.iterdir())) if path.is_dir() else []
    files = [path] if path.is_file() else inside
    if not files:
        return hash_name(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with reading(f"cannot read {file}"):
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def hash_name(source: str) -> str:
    """sha256 of a source that is only a name, such as one on the hub."""
    return hashlib.sha256(source.encode()).hexdigest()
