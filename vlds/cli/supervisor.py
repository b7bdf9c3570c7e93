"""Runs a command to its end, and ends it as a whole: how a signal ends a run.

The process that the user starts supervises the run. Who ends whom:

- The user asks the supervisor (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1). It passes the signal to the ranks
  alone, which save and end with 128 + n; the launcher then ends. After VLDS_GRACE_S seconds, or at
  a second Ctrl-C, it kills every process of the session.
- A rank fails: the launcher (local.py) sends SIGTERM to the others and ends with that rank's code.
  The supervisor gives them the same grace time, since DeepSpeed's launcher leaves ranks behind.
- The launcher or the supervisor dies: the ranks notice (`rank.watch_launcher`), save and end.

`supervise` runs the ranks of a run, and `run_stage` a whole command of the demo or a sweep.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from vlds.cli.local import SAVED, exit_code
from vlds.runtime.folders import remove_abandoned
from vlds.runtime.process import Interrupted, python, signals_collected
from vlds.runtime.rank_environment import is_rank, without_rank
from vlds.runtime.terminal import open_console, shell_command, tell, visible

SUPERVISOR = "VLDS_SUPERVISOR"
"""Environment variable that tells the ranks the supervisor's process id."""
RUNNER = ("deepspeed", "deepspeed.pt", "deepspeed.launcher.runner")
"""DeepSpeed's runner on a command line: two scripts, and the module."""
POLL_S = 0.1
PATIENCE_S = 1.0
"""Seconds after Ctrl-C until the user is told that processes are still ending."""
GRACE_S = 120.0
"""Default of VLDS_GRACE_S: seconds that ranks have to save and end."""
PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    asked: bool
    """True if a signal asked this process to end."""
    stopped: bool = False
    """True if the ranks ended by themselves after a signal, and said how to continue."""


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    grace_s: float,
    received: Sequence[int],
    *,
    saves: bool = False,
) -> Outcome:
    """Run a launcher to its end, pass signals on, leave no process behind. `received` grows
    meanwhile (`signals_collected`). `saves`: the ranks save before they end."""
    if received:  # before the start, as between a failure and a restart
        return Outcome(128 + received[0], asked=True)
    group = ProcessGroup(command, environment)
    deadline: float | None = None
    abandoned = told = False
    # Told in time, even if the user has set a short grace time.
    patience_s = min(PATIENCE_S, grace_s / 2)
    while group.alive():
        now = time.monotonic()
        if deadline is None:
            if received or group.code is not None:
                # First a request, and the grace time runs. If the command has ended by itself,
                # helpers, such as Python's resource tracker, may outlive it by a moment; ranks that
                # do were abandoned by it.
                deadline = now + grace_s
                number = received[0] if received else signal.SIGTERM
                abandoned = group.ask_to_end(number) and not received
        elif received.count(signal.SIGINT) > 1:
            group.kill()
        elif now > deadline:
            say(f"killing what did not end within {grace_s:g} s")
            group.kill()
        elif not told and signal.SIGINT in received and now > deadline - grace_s + patience_s:
            told = True
            saving, loss = ("saving, then ", ", without saving") if saves else ("", "")
            say(f"{saving}ending; Ctrl-C again ends at once{loss}")
        time.sleep(POLL_S)
    assert group.code is not None
    remove_abandoned()
    # Before it is translated: a rank that died of the signal has another code.
    stopped = group.code in SAVED
    if received:
        return Outcome(128 + received[0], asked=True, stopped=stopped)
    return Outcome(exit_code(group.code) or int(abandoned), asked=False, stopped=stopped)


def output_of(command: Sequence[str], received: Sequence[int]) -> tuple[int, str]:
    """Run a command to its end, or kill it when a signal is received; its exit code (128 + n for
    signal n) and its output."""
    # In its own session, so that Ctrl-C in the terminal does not reach it directly. It has nothing
    # to save, so it gets no grace time.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                if received:
                    os.killpg(process.pid, signal.SIGKILL)
    return 128 + received[0] if received else exit_code(process.returncode), output


class ProcessGroup:
    """A command in its own session, with every process that it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # Orphans of the session become our children, so that we see and reap each of them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        env = dict(environment) | {SUPERVISOR: str(os.getpid())}
        self._is_runner = RUNNER[-1] in command
        self._process = subprocess.Popen(command, env=env, start_new_session=True)

    @property
    def code(self) -> int | None:
        """Exit code of the command itself; None while it runs."""
        return self._process.returncode

    def alive(self) -> bool:
        """Reap the processes that have ended; True if any are left."""
        # -pid: any child of this process in the command's process group, adopted orphans included.
        while True:
            try:
                pid, status = os.waitpid(-self._process.pid, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._process.pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)

    def ask_to_end(self, number: int) -> bool:
        """Send a signal to the ranks alone, because their loader workers and launchers must outlive
        the saving; True if there are any. If there are none, all processes get it; DeepSpeed's
        runner gets SIGTERM, since it answers Ctrl-C with a traceback."""
        # All are found before one is asked: once a rank has ended, its children look like ranks.
        ranks = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) == self._process.pid and is_rank_itself(process):
                    ranks.append(process)
        for process in ranks:
            with suppress(psutil.Error):
                process.send_signal(number)
        if not ranks:
            self.kill(signal.SIGTERM if self._is_runner else number)
        return bool(ranks)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of the session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def is_rank_itself(process: psutil.Process) -> bool:
    """True for a rank itself, but not for its children, which inherit its environment."""
    with suppress(psutil.Error):
        parent = process.parent()
        inherited = parent is not None and is_rank(parent.environ())
        return is_rank(process.environ()) and not inherited
    return False


def say(message: str) -> None:
    """Tell the user one line."""
    tell(f"vlds: {message}", error=True, flush=True)


def grace_from_environment() -> float:
    """VLDS_GRACE_S: seconds that the ranks have to save and end."""
    text = os.environ.get("VLDS_GRACE_S") or str(GRACE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"VLDS_GRACE_S is {text!r}; give a number of seconds, 0 or more")
    return seconds


# Whole commands, one after another, each under a heading: the demo's, and those of a sweep.

BOUND = """
import os, signal, sys
from vlds.runtime.process import SAFE_PATH, end_with_parent
end_with_parent(signal.SIGTERM)
os.environ.pop(SAFE_PATH, None)  # a user's script finds what lies beside it
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error.strerror}")
"""
"""Becomes the command that follows it, which the system asks to end when this process is killed."""


@dataclass(frozen=True)
class Stage:
    """One command."""

    purpose: str
    product: Path
    """What it writes last; if it exists, the command is not run again."""
    command: list[str]


class StageError(Exception):
    """A command has failed and has printed the reason."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        """Of the command; 2 if it has said which mistake of the user's it is."""


def run_stage(stage: Stage, position: str, variables: Mapping[str, str]) -> None:
    """Print a command, and run it with further environment `variables`; pass signals on to it.

    Errors: StageError if it fails; Interrupted if a signal ended it.
    """
    say_stage(stage, position)
    started = time.monotonic()
    environment = {**without_rank(os.environ), **variables}
    with signals_collected() as received:
        # Twice the grace time: the command may be a supervisor, which needs its own first.
        command = python("-c", BOUND, *stage.command)
        outcome = supervise(command, environment, 2 * grace_from_environment(), received)
    if outcome.asked:
        raise Interrupted(received[0])
    if outcome.code:
        message = f"`{as_typed(stage.command)}` ended with exit code {outcome.code}"
        raise StageError(message, outcome.code)
    tell(f"({time.monotonic() - started:.0f} s)", flush=True)


def say_stage(stage: Stage, position: str) -> None:
    """Print what a command is for, and the command as the user would type it."""
    console = open_console()
    console.rule(f"[bold]{position}: {stage.purpose}", align="left")
    # The terminal itself wraps a long line, so that it can be copied as one.
    console.print(visible(as_typed(stage.command)), markup=False, soft_wrap=True)


def vlds(*words: object) -> list[str]:
    """Command line of one of our own commands."""
    return python("-m", "vlds", *words)


def as_typed(command: Sequence[str]) -> str:
    """A command line as the user would type it."""
    for typed, begin in (("vlds", vlds()), ("python", python()), ("python", python()[:1])):
        if list(command[: len(begin)]) == begin:
            return shell_command(typed, *command[len(begin) :])
    return shell_command(*command)
