"""Pictures for rows of a user's own data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys.own_rows import photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos/a.jpg and photos/b.jpg."""
    photos(tmp_path / "photos", "a.jpg", "b.jpg")
    return tmp_path
