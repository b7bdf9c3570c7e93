"""How processes end: asked by a signal, with their parent, or killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from tests.toys.processes import gone, until
from vlds.runtime.limited import OverLimit, limited
from vlds.runtime.process import (
    ASKING,
    Interrupted,
    how_it_ended,
    interruptible,
    on_signals,
)

PARENT = """
import subprocess, sys, time
child = "import time; from vlds.runtime.process import end_with_parent; end_with_parent(); "
child += "print('ready', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_ends_with_its_parent(stopped: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if stopped:
        child.suspend()
    parent.kill()
    until(lambda: gone(child), 10)
    parent.communicate()


def test_ends_in_words() -> None:
    assert how_it_ended(-9).startswith("was killed (SIGKILL: by a user, or by the system")
    assert how_it_ended(-11) == "was ended by SIGSEGV"
    assert how_it_ended(3) == "ended with exit code 3"


def test_an_error_that_a_library_makes_of_ctrl_c_is_ctrl_c() -> None:
    """Some imports turn whatever stops them into an ImportError."""

    def import_it() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted as error:
            raise ModuleNotFoundError("no such thing") from error

    # Else SIGINT may be ignored here.
    with on_signals(lambda _: None, ASKING), pytest.raises(Interrupted) as stopped, interruptible():
        import_it()
    assert stopped.value.exit_code == 130
    assert stopped.value.signal_name == "Ctrl-C"


# What a stranger's file asks for runs in a copy of this process, within limits.


def fails() -> str:
    raise KeyError("a")


def ends() -> str:
    os._exit(3)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (fails, ValueError, "^'a'$"),
        (lambda: "a" * (5 << 20), ValueError, "writes more than 4 MiB"),
        (lambda: "a" * 10**11, OverLimit, "more than 512 MiB"),
        (lambda: str(re.match("(a+)+$", "a" * 60 + "b")), OverLimit, "more than 2 seconds"),
        (ends, OverLimit, ""),
    ],
    ids=["fails", "writes too much", "memory", "time", "ends"],
)
def test_limits(make: Callable[[], str], error: type[ValueError], message: str) -> None:
    with pytest.raises(error, match=message):
        limited(make)


# Memory of freed tensors stays with the process.
