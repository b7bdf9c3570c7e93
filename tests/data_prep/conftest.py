"""What the tests of several commands share."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.packing.source import Finished, Journal
from tests.toys.shards import Check, record, write_shards
from vlds.runtime.process import Interrupted


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """Two shards of three samples."""
    return write_shards(tmp_path / "shards", [record(number) for number in range(6)])


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """The command: its exit code, and how often it names each reason."""

    def run(folder: Path, *files: Path, workers: int = 1) -> tuple[int, dict[str, int]]:
        capsys.readouterr()
        given = ["--annotations", *map(str, files)] if files else []
        code = main(["verify", str(folder), "--workers", str(workers), *given])
        printed = capsys.readouterr().out
        reasons = re.findall(r"^  (\d+) x (.*)$", printed, re.MULTILINE)
        assert ("all is well" in printed) == (code == 0)
        return code, {reason: int(count) for count, reason in reasons}

    return run


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What commands have printed since the last call."""
    return lambda: capsys.readouterr().out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[int, str], str]:
    """Check that a command has ended with code 2 and a message; all that it said."""

    def check(code: int, message: str) -> str:
        said = capsys.readouterr().err
        assert code == 2, said
        assert message in said
        return said

    return check


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Run a command until its first shard is in the journal: its exit code."""
    add = Journal.add

    def add_and_stop(self: Journal, entry: Finished) -> None:
        add(self, entry)
        raise Interrupted(signal.SIGINT)

    def run(command: list[str]) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", add_and_stop)
            return main(command)

    return run
