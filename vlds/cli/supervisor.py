"""Owns the processes of a run: starts the launcher in its own session, and ends it as a whole.

A launcher that is killed leaves its ranks behind, and DeepSpeed's passes no signals on. So the
supervisor asks the ranks to save and end, kills what is left after a grace time, and reports the
signal in its exit code. If the supervisor itself dies, the ranks notice (`rank.watch_launcher`).
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

import psutil

from vlds.cli import local
from vlds.cli.local import SAVED
from vlds.runtime.folders import remove_abandoned
from vlds.runtime.ranks import is_rank
from vlds.runtime.terminal import tell
from vlds.training.states import Resume

# Parses the words of a command line about processes: how many ranks, whether a run resumes, how
# often it is restarted. No other file parses them.


TRAIN = "train"
RANK_COMMANDS = (TRAIN, "evaluate", "predict", "features")
"""Commands that start ranks."""
WITHOUT_RANKS = ("--predictions", "--serve")
"""Options of `evaluate` and `predict` that need no ranks."""
HELP_WORDS = frozenset({"-h", "--help"})
ALL_KEYS = "--help-all"
"""Lists every key of a recipe."""
RANKS, RESTARTS, RESUME, NEW_PHASE = "--ranks", "--restarts", "--resume", "--new_phase"
PROFILE = "--profile"
MOST_PROFILED = 50


@dataclass(frozen=True)
class Words:
    """A command line, with the words about processes taken out."""

    rest: tuple[str, ...]
    """The command and all other words."""
    ranks: int | None = None
    restarts: int = 0
    resume: Resume = False
    new_phase: bool = False
    profile: int = 0
    """Steps to profile."""

    @property
    def command(self) -> str:
        """The command; "" if there is none."""
        return self.rest[0] if self.rest else ""

    @property
    def for_ranks(self) -> list[str]:
        """The command line of each rank: only the supervisor needs --ranks and --restarts."""
        resume = [RESUME, "auto"] if self.resume == "auto" else [RESUME] * bool(self.resume)
        profile = [PROFILE, str(self.profile)] if self.profile else []
        return [*self.rest, *resume, *[NEW_PHASE] * self.new_phase, *profile]

    @property
    def starts_ranks(self) -> bool:
        """True if the command needs ranks; its help, scoring a file and serving do not."""
        without = any(is_help(word) or option_of(word) in WITHOUT_RANKS for word in self.rest)
        return self.command in RANK_COMMANDS and not without


def split_words(arguments: Sequence[str]) -> Words:
    """Take the words about processes out of a command line. `--ranks` stays in for commands that
    start no ranks: it is an option of `plan` and `demo`.

    Errors: ValueError for a wrong value, or an option that does not go with the command.
    """
    rest: list[str] = []
    ranks, restarts, new_phase, profile = None, 0, False, 0
    resume: Resume = False
    unread = list(arguments)
    while unread:
        word = unread.pop(0)
        command = rest[0] if rest else ""
        if option_of(word) == RANKS and command in ("", *RANK_COMMANDS):
            ranks = positive(RANKS, value_of(word, unread), "the number of ranks")
        elif option_of(word) == RESTARTS:
            restarts = times(command, value_of(word, unread))
        elif option_of(word) == RESUME and command == TRAIN:
            resume = resumes(word, unread)
        elif word == NEW_PHASE and command == TRAIN:
            new_phase = True
        elif option_of(word) == PROFILE and command == TRAIN:
            profile = steps_to_profile(value_of(word, unread))
        else:
            rest.append(word)
    if new_phase and not resume:
        raise ValueError(f"{NEW_PHASE}: goes with {RESUME}, because a new run has no earlier phase")
    return Words(tuple(rest), ranks, restarts, resume, new_phase, profile)


def option_of(word: str) -> str:
    """`--name` of `--name=value`."""
    return word.partition("=")[0]


def is_help(word: str) -> bool:
    """True if a word asks for help."""
    return option_of(word) in (*HELP_WORDS, ALL_KEYS)


def value_of(word: str, unread: list[str]) -> str:
    """The value of an option: the text after `=`, or the next word, which leaves `unread`."""
    _, equals, value = word.partition("=")
    return value if equals else unread.pop(0) if unread else ""


def times(command: str, text: str) -> int:
    """The value of `--restarts`."""
    if command != TRAIN:
        raise ValueError(f"{RESTARTS}: goes with `vlds train` only")
    if not text.isdecimal():
        raise ValueError(f"{RESTARTS} is {text!r}; give a number, 0 or more")
    return int(text)


def steps_to_profile(text: str) -> int:
    """The value of `--profile`."""
    if (number := positive(PROFILE, text, "a number of steps")) > MOST_PROFILED:
        why = "each step adds megabytes to memory and to the trace"
        raise ValueError(f"{PROFILE} is {number}, but {why}; give at most {MOST_PROFILED}")
    return number


def resumes(word: str, unread: list[str]) -> Resume:
    """The value of `--resume`, whose `auto` is optional."""
    no_value = word == RESUME and bool(unread) and unread[0].startswith("-")
    value = "" if no_value else value_of(word, unread)
    if value not in ("", "auto"):
        raise ValueError(f"{RESUME}: got {value!r}; give {RESUME} alone, or {RESUME} auto")
    return "auto" if value == "auto" else True


def positive(source: str, text: str, noun: str) -> int:
    """A number, from the option or variable `source`."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{source} is {text!r}; give {noun}, 1 or more")
    return int(text)


SUPERVISOR = "VLDS_SUPERVISOR"
"""Environment variable that tells the ranks the supervisor's process id."""
RUNNER = ("deepspeed", "deepspeed.pt", "deepspeed.launcher.runner")
"""DeepSpeed's runner on a command line: two scripts, and the module."""
POLL_S = 0.1
PATIENCE_S = 1.0
"""Seconds after Ctrl-C until the user is told that processes are still ending."""
GRACE_S = 120.0
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
    if received:
        return Outcome(128 + received[0], asked=True)
    group = Group(command, environment)
    deadline: float | None = None
    abandoned = told = False
    patience_s = min(PATIENCE_S, grace_s / 2)
    while group.alive():
        now = time.monotonic()
        if deadline is None:
            if received or group.code is not None:
                deadline = now + grace_s
                # Helpers, such as Python's resource tracker, may outlive the command by a moment;
                # ranks that do were abandoned by it.
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
    # In its own session, so that Ctrl-C in the terminal does not reach it directly.
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
    """128 + n for a death by signal n, which subprocess reports as -n and DeepSpeed's launcher as
    256 - n."""
    return local.exit_code(code - 256 if code > 192 else code)


class Group:
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
        members = [process for process in psutil.process_iter() if self._holds(process)]
        ranks = [process for process in members if is_rank_itself(process)]
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

    def _holds(self, process: psutil.Process) -> bool:
        with suppress(ProcessLookupError, PermissionError):
            return os.getpgid(process.pid) == self._process.pid
        return False


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
