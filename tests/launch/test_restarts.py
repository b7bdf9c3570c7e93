"""What a supervisor does with a run that has failed: which command it starts again, on how many
ranks, how often, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.files import ROOT
from vlds.cli.local import MODULE
from vlds.cli.main import main
from vlds.cli.start import RunFacts, next_try, run_with_restarts
from vlds.cli.supervisor import Outcome, supervise
from vlds.cli.words import Words, split_words
from vlds.training import checkpoint
from vlds.training.states import Progress

WORDS = ["train", "--config", "a.yaml"]
TRAIN = Words(tuple(WORDS), ranks=2)


class Ends:
    """In place of ranks: how each start ends, and what was started."""

    def __init__(self, *codes: int, asked: bool = False) -> None:
        self.codes, self.asked = list(codes), asked
        self.started: list[Words] = []

    def __call__(self, words: Words) -> Outcome:
        self.started.append(words)
        return Outcome(self.codes.pop(0), self.asked)


def job(folder: Path, size: int = 8, micro: int | None = None) -> RunFacts:
    return RunFacts(str(folder), size, micro)


def test_a_failed_run_goes_on_at_most_n_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "state", {"a": {"fp32": torch.ones(1)}}, Progress(5, {}), keep=2)
    ends = Ends(137, 1, 1)
    words = replace(TRAIN, resume=True, restarts=2, profile=3)
    assert run_with_restarts(ends, words, lambda: job(tmp_path), lambda: None) == 1
    again = replace(words, resume="auto", profile=0)
    assert ends.started == [words, again, again]
    first, second, last = capsys.readouterr().err.splitlines()
    state = tmp_path / "state" / "step-00000005"
    assert first.startswith("vlds: the run ended, one of its processes was killed (SIGKILL")
    assert first.endswith(f"restart 1 of 2 on 2 ranks, from {state}")
    assert second.endswith(f"exit code 1; restart 2 of 2 on 2 ranks, from {state}")
    assert last.endswith(f"exit code 1, after 2 restarts; --resume continues from {state}")


@pytest.mark.parametrize("code", [0, 2, 129, 130, 143])
def test_what_is_not_started_again(code: int, tmp_path: Path) -> None:
    ends = Ends(code)
    assert (
        run_with_restarts(ends, replace(TRAIN, restarts=5), lambda: job(tmp_path), lambda: None)
        == code
    )
    assert len(ends.started) == 1
    asked = Ends(137, asked=True)
    assert (
        run_with_restarts(asked, replace(TRAIN, restarts=5), lambda: job(tmp_path), lambda: None)
        == 137
    )


def test_a_rank_that_dies_before_the_recipe_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = iter([None, None, job(tmp_path)])
    ends = Ends(137, 139, 0)
    assert (
        run_with_restarts(ends, replace(TRAIN, restarts=5), lambda: next(facts), lambda: None) == 0
    )
    assert len(ends.started) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("before its recipe was read; restart 1 of 5")
    assert "SIGSEGV before its recipe was read; restart 2 of 5" in said[1]
    for code in (1, 137, 143):
        again = Ends(code)
        assert run_with_restarts(again, TRAIN, lambda: None, lambda: None) == code
        assert len(again.started) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, "a traceback has said what happened"
    assert all(line.endswith("before its recipe was read: start it again") for line in said)


def test_a_signal_between_a_failure_and_the_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received: list[int] = []

    def start(_: Words) -> Outcome:
        return supervise([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 5, received)

    def still_there() -> None:
        received.append(signal.SIGTERM)

    assert (
        run_with_restarts(start, replace(TRAIN, restarts=5), lambda: job(tmp_path), still_there)
        == 143
    )
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("vlds: the run ended with exit code 3; restart 1 of 5")
    assert last.startswith("vlds: the run ended by SIGTERM, after 1 restart")


def test_fewer_ranks_do_not_hold_more_at_once(tmp_path: Path) -> None:
    large = job(tmp_path, 64)
    four = replace(TRAIN, ranks=4)
    again = replace(four, resume="auto")
    assert next_try(four, large, 4) == again
    assert next_try(four, large, 8) == again
    micro = ("--data.micro_batch_size", "16")
    assert next_try(four, large, 3) == replace(again, rest=(*WORDS, *micro), ranks=3)
    assert next_try(replace(TRAIN, ranks=5), large, 1).rest[-1] == "13"
    assert next_try(four, job(tmp_path, 64, 8), 3) == replace(again, ranks=3)
    assert next_try(replace(TRAIN, ranks=None), large, None) == replace(again, ranks=None)


def test_words_of_the_command_line() -> None:
    plain = Words(tuple(WORDS))
    assert split_words([*WORDS, "--restarts", "3"]) == replace(plain, restarts=3)
    assert split_words(["train", "--restarts=3", *WORDS[1:]]) == replace(plain, restarts=3)
    assert split_words(WORDS) == plain
    assert plain.for_ranks == WORDS
    assert split_words([*WORDS, "--resume"]) == replace(plain, resume=True)
    assert split_words(["train", "--resume", *WORDS[1:]]) == replace(plain, resume=True)
    for auto in (["--resume", "auto"], ["--resume=auto"]):
        assert split_words(["train", *auto, *WORDS[1:]]) == replace(plain, resume="auto")
    with pytest.raises(ValueError, match="--resume: got 'always'; give --resume alone, or"):
        split_words(["train", "--resume", "always"])
    with pytest.raises(ValueError, match="--new-phase: goes with --resume"):
        split_words([*WORDS, "--new-phase"])


def test_mistakes_in_restarts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--restarts", "often"]) == 2
    assert "--restarts is 'often'; give a number, 0 or more" in capsys.readouterr().err
    assert main(["evaluate", "--restarts", "1"]) == 2
    assert "--restarts: goes with `vlds train` only" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 3])
def test_a_helper_that_outlives_its_command_changes_no_code(code: int) -> None:
    """Python's resource tracker does, by a moment."""
    words = ["sh", "-c", f"sleep 0.5 & exit {code}"]
    assert supervise(words, os.environ, 5, []) == Outcome(code, asked=False)


# The launcher of one machine's ranks: what it refuses, and how it ends with them.

LOCAL = [sys.executable, "-m", MODULE]
DIES = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""
BLOCKED = """
import ctypes, os, signal, sys
if os.environ["RANK"] == "0":
    sys.exit(3)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(15, 143), (9, 137)])
def test_a_rank_that_dies_of_a_signal_has_not_saved(number: int, code: int) -> None:
    command = [*LOCAL, "2", "1", sys.executable, "-c", DIES, str(number)]
    outcome = supervise(command, {**os.environ, "PYTHONPATH": str(ROOT)}, 20, [])
    assert outcome == Outcome(code, asked=False, stopped=False)


def test_ranks_that_wait_where_they_hear_no_signal() -> None:
    """As in a collective of NCCL whose other rank is dead: Python does not run."""
    ranks = ["3", "1", sys.executable, "-c", BLOCKED]
    words = f"from vlds.cli import local; local.LAST_WORDS_S = 0.5; local.run({ranks!r})"
    # Its pipes close when no process is left.
    ended = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, timeout=30)
    assert ended.returncode == 3


def test_ranks_that_have_saved() -> None:
    command = [*LOCAL, "2", "1", "sh", "-c", "exit 143"]
    outcome = supervise(command, {**os.environ, "PYTHONPATH": str(ROOT)}, 20, [])
    assert outcome == Outcome(143, asked=False, stopped=True)
