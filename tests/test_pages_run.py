"""Each page of docs/ opens with an example that runs as it stands, in an empty folder, without a
network, and prints what the page shows.

The example is all blocks up to the first ```text block, which is what it prints. A block of yaml,
csv, json or python whose first line is a comment with a file's name is written to that file; other
blocks of python run, and those of sh too. Numbers may differ; a line `...` stands for any lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.files import BLOCK, ROOT

PAGES = sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "README.md"})
FILE = re.compile(r"(?:#|//) (\S+\.\w+)\n")
NUMBER = re.compile(r"-?(?:\d[\d,:]*)?\.?\d+(?:e[+-]?\d+)?")
MOST_WORDS = 120
"""Of a page before its example."""


def example(page: Path) -> tuple[list[tuple[str, str]], str]:
    """The blocks (language, text) of a page's example, and what it prints."""
    blocks = BLOCK.findall(page.read_text("utf-8"))
    end = next((n for n, (language, _) in enumerate(blocks) if language == "text"), None)
    return ([], "") if end is None else (blocks[:end], blocks[end][1])


def plain(text: str) -> list[str]:
    """Its lines, with one number for all and one space for several."""
    lines = (NUMBER.sub("0", " ".join(line.split())) for line in text.splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_opens_with_an_example(page: Path) -> None:
    before = page.read_text("utf-8").partition("```")[0]
    assert len(before.split()) <= MOST_WORDS
    assert "\n## " not in before
    blocks, shown = example(page)
    assert {"sh", "python"} & {language for language, _ in blocks}
    assert shown.strip(" .\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    blocks, shown = example(page)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    printed = ""
    for language, text in blocks:
        if (name := FILE.match(text)) and language != "sh":
            # JSON and CSV have no comments.
            written = text if language in ("yaml", "python") else text[name.end() :]
            (tmp_path / name[1]).write_text(written, encoding="utf-8")
        elif language in ("sh", "python"):
            program = ["bash", "-ec"] if language == "sh" else [sys.executable, "-c"]
            done = subprocess.run(
                [*program, text], cwd=tmp_path, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            printed += done.stdout
            assert "Traceback" not in done.stdout, printed
    lines = (r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in plain(shown))
    assert re.fullmatch("".join(lines), "".join(f"{line}\n" for line in plain(printed))), printed
