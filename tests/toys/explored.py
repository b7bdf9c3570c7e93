"""Runs the script of a report's page outside a browser, and does what a reader would."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.toys.html_reader import Reader

NODE = shutil.which("node")
SMALL_DOM = Path(__file__).with_name("small_dom.js")


def explored(page: str, folder: Path, *acts: tuple[str, str]) -> list[dict[str, Any]]:
    """What the page shows at first and after each act: (id of a control, what is set or "")."""
    assert NODE is not None
    (_, data), (_, script) = Reader(page).scripts
    file = folder / "acts.json"
    file.write_text(json.dumps({"data": data, "script": script, "acts": acts}), "utf-8")
    done = subprocess.run(
        [NODE, str(SMALL_DOM), str(file)], check=True, capture_output=True, text=True, timeout=60
    )
    seen: list[dict[str, Any]] = json.loads(done.stdout)
    return seen
