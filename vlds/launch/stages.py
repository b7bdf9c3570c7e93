"""Commands that run one after another, each under a heading: the demo's, and those of a sweep."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.launch.supervisor import grace_from_environment, supervise
from vlds.runtime.process_end import Interrupted, signals_collected
from vlds.runtime.rank_environment import without_rank
from vlds.runtime.shown import visible
from vlds.runtime.terminal import open_console, tell

BOUND = """
import os, signal, sys
from vlds.runtime.process_end import end_with_parent
end_with_parent(signal.SIGTERM)
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


def run_stage(stage: Stage, position: str, variables: Mapping[str, str]) -> None:
    """Print a command, and run it with further environment `variables`; pass signals on to it.

    Errors: StageError if it fails; Interrupted if a signal ended it.
    """
    say_stage(stage, position)
    started = time.monotonic()
    environment = {**without_rank(os.environ), **variables}
    with signals_collected() as received:
        command = [sys.executable, "-c", BOUND, *stage.command]
        outcome = supervise(command, environment, 2 * grace_from_environment(), received)
    if outcome.asked:
        raise Interrupted(received[0])
    if outcome.code:
        raise StageError(f"`{as_typed(stage.command)}` ended with exit code {outcome.code}")
    tell(f"({time.monotonic() - started:.0f} s)", flush=True)


def say_stage(stage: Stage, position: str) -> None:
    """Print what a command is for, and the command as the user would type it."""
    console = open_console()
    console.rule(f"[bold]{position}: {stage.purpose}", align="left")
    # The terminal itself wraps a long line, so that it can be copied as one.
    shown = visible(as_typed(stage.command))
    console.print(shown, markup=False, soft_wrap=True)


def vlds(*words: object) -> list[str]:
    """Command line of one of our own commands."""
    return [sys.executable, "-m", "vlds", *map(str, words)]


def as_typed(command: Sequence[str]) -> str:
    """A command line as the user would type it."""
    if list(command[:3]) == vlds():
        return shlex.join(["vlds", *command[3:]])
    return shlex.join(["python", *command[1:]] if command[0] == sys.executable else command)
