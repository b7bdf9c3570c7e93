"""Finds the recipes, sweeps and DeepSpeed configs of vlds, in a checkout and in a wheel."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vlds.runtime.near_names import closest

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE.parent, PACKAGE)
"""Parents of the folders in SHIPPED: next to the package (checkout) or inside it (wheel)."""
SHIPPED = ("recipes", "sweeps", "ds_configs")
KINDS = (".yaml", ".json")
MOST_LISTED = 12
"""Names in an error message."""


def find(name: str | Path) -> Path:
    """The file or folder at this path, or else the shipped one of this name.

    find("recipes/demo.yaml") is the file in the working directory if it exists, else the demo
    recipe of vlds.

    Errors: ValueError that suggests another name.
    """
    path = Path(name)
    if path.exists():
        return path
    if (
        not path.is_absolute()
        and path.parts
        and path.parts[0] in SHIPPED
        and ".." not in path.parts
    ):
        for folder in FOLDERS:
            if (folder / path).exists():
                return folder / path
    raise ValueError(f"no such file: {name}; {_cure(path)}")


def _cure(missing: Path) -> str:
    """What to name instead of a missing file: a near name in its folder or a shipped one."""
    ours = missing.parts[0] if missing.parts and missing.parts[0] in SHIPPED else None
    names = shipped(ours or "recipes")
    known = {Path(name).stem: name for name in names}
    kinds = (missing.suffix,) if missing.suffix in KINDS else KINDS
    with suppress(OSError):
        siblings = [file for file in missing.parent.iterdir() if file.suffix in kinds]
        known |= {file.stem: str(file) for file in siblings if file.is_file()}
    # Without the suffix, which would make all names similar.
    close = closest(missing.stem, known)
    hint = "" if close is None else f"did you mean '{known[close]}'? "
    if ours is None and (hint or missing.suffix != ".yaml"):
        return hint.rstrip() or "check the path"
    within = missing.parent if ours else Path("recipes")
    listed = [name for name in names if Path(name).parent == within] or names
    more = f" and {len(listed) - MOST_LISTED} more" if len(listed) > MOST_LISTED else ""
    check = "" if ours else "check the path, or name another; "
    return f"{hint}{check}vlds brings: {', '.join(listed[:MOST_LISTED])}{more}"


def shipped(folder: str) -> list[str]:
    """Names that find() knows in one of SHIPPED, sorted."""
    assert folder in SHIPPED
    for parent in FOLDERS:
        if (parent / folder).is_dir():
            files = (parent / folder).rglob("*")
            kept = (file for file in files if file.suffix in KINDS)
            return sorted(str(file.relative_to(parent)) for file in kept)
    return []
