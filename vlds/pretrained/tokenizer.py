"""Checks the folder, file or hub name of a tokenizer before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.pretrained.files import SourceError
from vlds.pretrained.hub import check_source


def check_tokenizer(source: str, field: str, files: Sequence[str]) -> None:
    """Check that a tokenizer exists locally or can be downloaded. `files`: names of files in its
    folder, and suffixes (.model) of files that hold a whole tokenizer.

    Without this check, transformers would create an empty tokenizer for a folder that holds none,
    and would look on the hub for the path of a file that it cannot read.

    Errors: SourceError that begins with `field`.
    """
    path = Path(source)
    endings = [name for name in files if name.startswith(".")]
    names = [name for name in files if name not in endings]
    lone = "".join(f"a {ending} file or " for ending in endings)
    cure = f"name {lone}a folder that holds {' or '.join(names)}"
    if path.suffix in endings and not path.exists():
        raise SourceError(f"{field}: no such file: {source}; {cure}")
    check_source(source, field, cure)
    if path.is_file() and path.suffix not in endings:
        raise SourceError(f"{field}: {source} is not a tokenizer; {cure}")
    if path.is_dir() and not any((path / name).is_file() for name in names):
        raise SourceError(f"{field}: no tokenizer in the folder {source}; {cure}")
