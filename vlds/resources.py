"""Finds the recipes and DeepSpeed configs that come with vlds, in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
FOLDERS = (PACKAGE.parent, PACKAGE)
"""Where recipes/ and ds_configs/ may stand: beside the package (checkout), inside it (wheel)."""
SHIPPED = ("recipes", "ds_configs")


def find(name: str | Path) -> Path:
    """The file or folder at this path, or else the shipped one of this name.

    find("recipes/demo.yaml") is that path from the working directory if there is one; otherwise the
    demo recipe that comes with vlds.
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
    known = ", ".join(shipped(path.parts[0])) if path.parts and path.parts[0] in SHIPPED else ""
    cure = f"; vlds brings: {known}" if known else "; check the path"
    raise ValueError(f"no such file: {name}{cure}")


def shipped(folder: str) -> list[str]:
    """Names that find() knows in "recipes" or "ds_configs", sorted."""
    assert folder in SHIPPED
    for parent in FOLDERS:
        if (parent / folder).is_dir():
            files = (parent / folder).rglob("*")
            kept = (file for file in files if file.suffix in {".yaml", ".json"})
            return sorted(str(file.relative_to(parent)) for file in kept)
    return []
