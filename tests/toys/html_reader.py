"""Read a page without a browser: its tags, text and tables, and what its script shows."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "br", "line", "circle", "polyline", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        """Rows of cells of each table; a cell's lines are joined by blanks."""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        """Attributes and text of each script."""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            if self.open[-1] == "script":
                self.scripts.append((self.tags[-1][1], data))
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            cell = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = f"{cell} {data}".strip()

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


NODE = shutil.which("node")


SMALL_DOM = Path(__file__).with_name("small_dom.js")


def explored(page: str, folder: Path, *acts: tuple[str, str]) -> list[dict[str, Any]]:
    """What the page shows at first and after each act: (id of a control, its new value or "")."""
    assert NODE is not None
    (_, data), (_, script) = Reader(page).scripts
    file = folder / "acts.json"
    file.write_text(json.dumps({"data": data, "script": script, "acts": acts}), "utf-8")
    done = subprocess.run(
        [NODE, str(SMALL_DOM), str(file)], check=True, capture_output=True, text=True, timeout=60
    )
    seen: list[dict[str, Any]] = json.loads(done.stdout)
    return seen
