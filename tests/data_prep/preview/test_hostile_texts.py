"""What samples say is shown, and does nothing to the terminal or the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import write
from tests.toys.pictures import png

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [red]loud[/red] is \u202ereversed\r"
HOSTILE_ID = "[red]loud[/red] is \u202ereversed"
"""Control characters are refused in ids."""
SHOWN = "\\x1b[2J\\x1b]0;owned\\x07"
OBEYED = ("\x1b", "\x07", "\r", "\u202e")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A sample whose every text is hostile, as far as ids may be so, and one that is damaged."""
    annotation = {"id": HOSTILE_ID, "question": HOSTILE, "answers": [HOSTILE], HOSTILE: HOSTILE}
    good = SampleRecord(
        id=HOSTILE_ID, members=[("png", png())], json={"annotations": [annotation, annotation]}
    )
    bad = SampleRecord(
        id=f"bad{HOSTILE_ID}", members=[("png", png()[:60])], json={"annotations": [annotation]}
    )
    out = tmp_path / "shards"
    write_dataset(out, name="toy", kind="vqa", split="train", records=[good, bad])
    info = json.loads((out / "dataset.json").read_text("utf-8"))
    info["dropped"] = [{"id": "x", "reason": HOSTILE}]
    (out / "dataset.json").write_text(json.dumps(info), "utf-8")
    return out


@pytest.mark.parametrize("command", ["preview", "verify", "stats"])
@pytest.mark.parametrize("force", [False, True])
def test_a_terminal_does_not_obey_them(
    command: str, force: bool, shards: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if force and command == "preview":  # with colours of our own
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    main([command, str(shards)])
    printed = "".join(capsys.readouterr())
    assert (SHOWN if command != "verify" else "\\u202ereversed") in printed
    assert "[red]loud[/red]" in printed
    for character in OBEYED[1:] if force else OBEYED:
        assert character not in printed
    assert "\x1b[2J" not in printed


def test_a_page_shows_them(shards: Path, tmp_path: Path) -> None:
    assert main(["preview", str(shards), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "\\u202ereversed" in page
    assert not [character for character in OBEYED if character in page]


def row(**fields: Any) -> str:
    return json.dumps({"image": "a.png", "question": "what?", "answer": "x"} | fields) + "\n"


def test_errors_and_dropped_rows_show_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images" / "a.png", png())
    arguments = ["jsonl", "--task", "vqa", "--images", str(tmp_path / "images")]
    arguments += ["--out", str(tmp_path / "out"), "--annotations", str(tmp_path / "rows")]
    for rows in (row(image=HOSTILE), json.dumps({HOSTILE: 1}), row() + f'{{"a": {HOSTILE}'):
        write(tmp_path / "rows", rows)
        assert main(arguments) == 2
        printed = "".join(capsys.readouterr())
        assert not [character for character in OBEYED if character in printed]
