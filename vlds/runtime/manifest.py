"""A folder's manifest: size and hash of every file, to check that the folder is whole."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from vlds.runtime.disk import system_error
from vlds.runtime.json_file import read_json
from vlds.runtime.regular_file import open_file

MANIFEST = "manifest.json"
DESCRIPTION = "artifact.json"
"""A folder with this file was written by vlds, so it has a manifest."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""Parts of torch's RuntimeErrors (torch.OutOfMemoryError is one)."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder, after all its other files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {}
    for path in files:
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def recorded_hash(folder: Path, name: str) -> str:
    """SHA-256 of a file in a folder that is whole, as its manifest has it."""
    digest: str = read_json(folder / MANIFEST)[name]["sha256"]
    return digest


def damage(folder: Path, needs: Collection[str] = (), within: str | None = None) -> str | None:
    """What is wrong with a folder that has a manifest; None if it is whole.

    `needs`: files that the manifest must list. `within`: check only this file or folder in it. The
    manifest may come from anybody: nothing outside the folder is opened, whatever it names.
    """
    try:
        entries = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return f"has no {MANIFEST}: it was not written to the end"
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    if not isinstance(entries, dict):
        return f"{MANIFEST} is not a list of files"
    for name in needs:
        if name not in entries:
            return f"{MANIFEST} does not list {name}"
    if within is not None:
        entries = {
            name: entry
            for name, entry in entries.items()
            if name == within or name.startswith(f"{within}/")
        }
        if not entries:
            return f"{MANIFEST} does not list {within}"
    return next(filter(None, (_file_damage(folder, *entry) for entry in entries.items())), None)


def _file_damage(folder: Path, name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        return f"{MANIFEST} has no size and sha256 for {name!r}"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return f"{MANIFEST} names {name!r}, which is outside the folder"
    path = folder / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return f"{name} is not what was written (size or sha256 differ)"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lacks_memory(error: BaseException) -> bool:
    """True if an error of any library means that memory ran out."""
    refused = system_error(error)
    torch_says = isinstance(error, RuntimeError) and any(w in str(error) for w in NO_MEMORY)
    return (
        isinstance(error, MemoryError)
        or (refused is not None and refused.errno == errno.ENOMEM)
        or torch_says
    )
