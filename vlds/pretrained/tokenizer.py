"""Where a tokenizer comes from: a folder, a file or a hub name, checked before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.pretrained.files import SourceError
from vlds.pretrained.hub import check_source


def check_tokenizer(source: str, field: str, files: Sequence[str]) -> None:
    """Check that a tokenizer lies here, or can be fetched. `files`: names of files in its folder,
    and endings (.model) of files that hold a whole one.

    transformers makes an empty tokenizer of a folder that holds none, and takes a file that it
    cannot read for a name on the hub.

    Errors: ValueError that begins with `field`.
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
