"""The launcher of one machine's ranks: what it refuses, and how it ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.toys.files import ROOT
from vlds.cli.local import MODULE
from vlds.cli.supervisor import Outcome, supervise

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
SECOND_FAILS = """
import errno, sys
from vlds.cli import local

starts = []

def refuse(event, _):
    if event == "subprocess.Popen":
        starts.append(event)
        if len(starts) == 2:
            raise BlockingIOError(errno.EAGAIN, "no more processes")

sys.addaudithook(refuse)
local.run(["3", "1", "sleep", "60"])
"""


@pytest.mark.parametrize(
    "words", [[], ["2"], ["2", "1"], ["two", "1", "true"], ["0", "1", "true"], ["2", "x", "true"]]
)
def test_wrong_arguments(words: list[str]) -> None:
    ended = subprocess.run([*LOCAL, *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "usage: python -m vlds.cli.local RANKS PORT COMMAND...; RANKS (1 or more) and PORT are "
        "numbers\n"
    )


def test_a_rank_that_cannot_be_started_ends_those_before_it() -> None:
    # Its pipes close when no process is left.
    ended = subprocess.run(
        [sys.executable, "-c", SECOND_FAILS], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert ended.stderr == "vlds: cannot start 3 ranks of sleep: [Errno 11] no more processes\n"


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


def test_the_end_of_a_rank_that_nccl_aborts_is_explained() -> None:
    """NCCL's watchdog ends the process, and Python is not asked."""
    ranks = ["2", "1", sys.executable, "-c", DIES, str(signal.SIGABRT.value)]
    words = f"from vlds.cli import local; local.has_gpu_driver = lambda: True; local.run({ranks!r})"
    ended = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, timeout=30)
    assert ended.returncode == 128 + signal.SIGABRT
    assert ended.stderr.startswith(b"vlds: rank 1 ended by SIGABRT: so NCCL ends a rank for which")
