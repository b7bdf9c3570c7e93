"""The command line itself: help, statistics, indexing, unusual endings."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep import cli
from data_prep.catalogue import SUMMARIES
from data_prep.cli import main
from data_prep.command import num_bytes
from tests.toys.files import write
from tests.toys.pictures import jpeg
from vlds.runtime.process import ASKING, on_signals, signal_name

COMMANDS = tuple(cli.build_parser()._subparsers._group_actions[0].choices)  # type: ignore


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    rows = [
        {"image": "a.jpg", "question": "red?", "answer": answer} for answer in ("yes", "no", "yes")
    ]
    write(tmp_path / "images/a.jpg", jpeg())
    path = write(tmp_path / "rows.json", rows)
    arguments = ["--annotations", str(path), "--images", str(tmp_path / "images")]
    assert main(["jsonl", "--task", "vqa", *arguments, "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_the_catalogue_has_the_commands_that_the_modules_add() -> None:
    assert tuple(SUMMARIES) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    lines = output().splitlines()
    assert lines[0].startswith(f"usage: vlds data {command} ")
    assert any(line.startswith(f"  vlds data {command} ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_stats(shards: Path, output: Any, refused: Any) -> None:
    output()
    assert main(["stats", str(shards.parent)]) == 0
    printed = output()
    assert "yes 67 %, no 33 %" in printed
    assert "40x24 100 %" in printed
    refused(main(["stats", str(shards.parent / "images")]), "give a folder of shards")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1GiB", 2**30), ("1.5k", 1500), ("1000", 1000), ("2 mib", 2**21)],
)
def test_sizes(text: str, size: int) -> None:
    assert num_bytes(text) == size


@pytest.mark.parametrize("command", ["verify", "stats", "preview", "index"])
def test_a_web_server_cannot_be_listed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "http://u:secret@a.b/shards"]) == 2
    told = capsys.readouterr().err
    assert "http://a.b/shards: a web server's folder cannot be listed or written" in told
    assert "secret" not in told


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("number", ASKING)
def test_a_signal_is_one_line(
    number: signal.Signals,
    resume: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def add_command(commands: Any) -> None:
        parser = commands.add_parser("work")
        if resume:
            parser.add_argument("--resume")
        parser.set_defaults(run=lambda _: os.kill(os.getpid(), number))

    monkeypatch.setitem(sys.modules, "data_prep.work", SimpleNamespace(add_command=add_command))
    monkeypatch.setattr(cli, "CATALOGUE", {"work": {"work": "waits"}})
    with on_signals(lambda _: None, ASKING):  # else SIGINT may be ignored here, or end the tests
        assert cli.main(["work"]) == 128 + number
    goes_on = ": the data set being written is incomplete; --resume continues it" * resume
    assert capsys.readouterr().err == f"interrupted by {signal_name(number)}{goes_on}\n"
