"""The processes of a run: a session that ends as a whole, and ranks that notice a lost launcher.

DeepSpeed's runner does not pass signals on and leaves its ranks behind when it dies. So a
supervisor starts the launcher in a session of its own and owns it: it asks the ranks to save and
end, kills what is left after a grace time, and reports the signal in its exit code. Should the
supervisor itself vanish, the ranks see it (watch_launcher) and act as if they had been asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from vlds.runtime.process_end import heard, on_signals
from vlds.runtime.rank_environment import is_rank
from vlds.runtime.terminal import tell

SUPERVISOR = "VLDS_SUPERVISOR"
"""Environment variable that tells the ranks the supervisor's process id."""
RUNNER = ("deepspeed", "deepspeed.pt", "deepspeed.launcher.runner")
"""DeepSpeed's runner on a command line: two scripts, and the module."""
POLL_S = 0.1
PATIENCE_S = 1.0
"""After Ctrl-C; what has not ended by then is told about."""
PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""


GRACE_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    asked: bool
    """Whether somebody asked this process for the end."""


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    grace_s: float,
    received: Sequence[int],
    *,
    saves: bool = False,
) -> Outcome:
    """Run a launcher to its end, pass signals on (`received` grows: `signals_collected`), leave
    nothing behind. `saves`: whether the ranks save before they end."""
    if received:
        return Outcome(128 + received[0], asked=True)
    group = Group(command, environment)
    deadline: float | None = None
    abandoned = told = False
    while group.alive():
        if deadline is None and (received or group.code is not None):
            deadline = time.monotonic() + grace_s
            # Helpers, such as Python's resource tracker, may outlive the command by a moment.
            ending = received[0] if received else signal.SIGTERM
            abandoned = group.ask_to_end(ending) and not received
        elif deadline is not None and received.count(signal.SIGINT) > 1:
            group.kill()
        elif deadline is not None and time.monotonic() > deadline:
            say(f"killing what did not end within {grace_s:g} s")
            group.kill()
        elif (
            deadline is not None
            and not told
            and signal.SIGINT in received
            and time.monotonic() > deadline - grace_s + min(PATIENCE_S, grace_s / 2)
        ):
            told = True
            first, last = ("saving, then ", ", without saving") if saves else ("", "")
            say(f"{first}ending; Ctrl-C again ends at once{last}")
        time.sleep(POLL_S)
    assert group.code is not None
    if received:
        return Outcome(128 + received[0], asked=True)
    return Outcome(exit_code(group.code) or int(abandoned), asked=False)


def output_of(command: Sequence[str], received: Sequence[int]) -> tuple[int, str]:
    """Run a command that writes nothing but its output; its exit code and that. A signal ends it at
    once, and then the code is 128 + n."""
    # In a session of its own, so that Ctrl-C in the terminal reaches it through us alone.
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


def exit_code(code: int) -> int:
    """128 + n for a death by signal n, also where DeepSpeed's launcher hands it on as 256 - n."""
    if code > 192:
        code -= 256
    return 128 - code if code < 0 else code


class Group:
    """A command in its own session, with everything it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # Orphans of the session become our children, so that we see and reap every one of them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        env = dict(environment) | {SUPERVISOR: str(os.getpid())}
        self._is_runner = RUNNER[-1] in command
        self._process = subprocess.Popen(command, env=env, start_new_session=True)

    @property
    def code(self) -> int | None:
        """Exit code of the command itself; None while it runs."""
        return self._process.returncode

    def alive(self) -> bool:
        """Reap what has ended; whether anything is left."""
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
        """Send a signal to the ranks alone: their loaders and launchers must outlive the saving.
        Whether there are any; else to all. DeepSpeed's runner gets SIGTERM: it answers Ctrl-C with
        a traceback."""
        members = [process for process in psutil.process_iter() if self._holds(process)]
        ranks = [process for process in members if _is_rank(process)]
        for process in ranks:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        if not ranks:
            self.kill(signal.SIGTERM if self._is_runner else number)
        return bool(ranks)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of the session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _holds(self, process: psutil.Process) -> bool:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            return os.getpgid(process.pid) == self._process.pid
        return False


def _is_rank(process: psutil.Process) -> bool:
    """Whether this is a rank itself: no child of one, and no launcher."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        inherited = parent is not None and is_rank(parent.environ())
        return is_rank(process.environ()) and not inherited
    return False


@contextlib.contextmanager
def signals_collected() -> Iterator[list[int]]:
    """Collect the signals that ask for an end; those that were ignored (nohup) stay ignored."""
    received: list[int] = []
    with on_signals(received.append, heard()):
        yield received


def watch_launcher(
    on_lost: Callable[[], None], grace_s: float, poll_s: float = 1.0
) -> threading.Thread:
    """In a rank: call on_lost once when a process that started this rank is gone.

    Watched are the parent (DeepSpeed's launch.py, or torchrun), the deepspeed runner above it and
    the supervisor. A rank that still lives after the grace time (it may wait in a collective for
    ever) is killed.
    """
    watched = _launchers()

    def watch() -> None:
        while watched is not None and all(map(_lives, watched)):
            time.sleep(poll_s)
        on_lost()
        time.sleep(grace_s)
        say(f"the launcher is gone and this rank did not end within {grace_s:g} s")
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="watch_launcher", daemon=True)
    thread.start()
    return thread


def _launchers() -> list[psutil.Process] | None:
    """The processes that started this one; None when one of them is gone already."""
    try:
        parent = psutil.Process(os.getppid())
        found = [parent]
        if "deepspeed.launcher.launch" in parent.cmdline():  # not under torchrun
            above = parent.parent()
            if above is None or _adopted(parent, above):
                return None
            if _is_runner(above):
                found.append(above)
        if SUPERVISOR in os.environ:
            found.append(psutil.Process(int(os.environ[SUPERVISOR])))
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    return found


def _is_runner(process: psutil.Process) -> bool:
    """Whether this is DeepSpeed's runner, and not a shell that has a word of it in a script."""
    return any(os.path.basename(word) in RUNNER for word in process.cmdline())


def _adopted(launcher: psutil.Process, above: psutil.Process) -> bool:
    """Whether the runner was killed, so that another process is now the parent of its launcher.

    A runner is of its launcher's session, and so is the shell that starts one on another host,
    unless the launcher leads that session.
    """
    session = os.getsid(launcher.pid)
    outside = os.getsid(above.pid) != session or above.pid == 1
    return not _is_runner(above) and session != launcher.pid and outside


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def say(message: str) -> None:
    """One line for the user."""
    tell(f"vlds: {message}", error=True, flush=True)


def grace_from_environment() -> float:
    """VLDS_GRACE_S: seconds that the ranks have to save and end."""
    text = os.environ.get("VLDS_GRACE_S") or str(GRACE_S)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"VLDS_GRACE_S is {text!r}; give a number of seconds") from None
