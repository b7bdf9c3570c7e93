"""The launcher of one machine's ranks: what it refuses, and how it ends with them."""

from __future__ import annotations

import os
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
