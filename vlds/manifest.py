"""What a folder must hold to be whole: a manifest has the size and hash of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from vlds.runtime.json_file import read_json
from vlds.runtime.regular_file import open_file

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write down the size and hash of every file of a folder, last of all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {}
    for path in files:
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def damage(folder: Path, needs: Collection[str] = ()) -> str | None:
    """What is wrong with a folder that has a manifest; None when it is whole.

    `needs`: files that the manifest must list. It may be anybody's: nothing outside the folder is
    opened, whatever it names.
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
