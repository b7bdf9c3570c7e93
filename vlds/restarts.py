"""What follows when a run has failed: the last line, and with `--restarts N` another try.

Restarted is what another try can cure: a rank that died, a lost launcher, a collective that timed
out. Not restarted is what would come again (exit code 2: recipe, data, memory, disk, numbers), and
what somebody asked for (SIGTERM, Ctrl-C, SIGHUP).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlds.runtime.process_end import ASKING, KILLED, signal_name
from vlds.supervisor import Outcome, say
from vlds.training.states import newest, state_folders

MISTAKE = 2
FINAL = (0, MISTAKE, *(128 + number for number in ASKING))
"""Exit codes after which another try is of no use, or not wanted."""
RESUME = "--resume"


@dataclass(frozen=True)
class Job:
    """What the supervisor has to know of a recipe."""

    output: str
    largest_batch: int
    """Examples of its largest global batch."""
    micro_batch_size: int | None


Start = Callable[[Sequence[str], int | None], Outcome]
"""Runs a command line on so many ranks, to its end."""


def run_job(
    start: Start,
    arguments: Sequence[str],
    ranks: int | None,
    job: Job,
    restarts: int,
    still_there: Callable[[], int | None],
) -> int:
    """Run `vlds train ARGUMENTS` until it ends well or for good; the exit code.

    `ranks`: None where the launcher decides. `still_there`: how many ranks could be started now,
    None where that is not ours to say.
    """
    outcome, tried = start(arguments, ranks), 0
    while tried < restarts and not (outcome.asked or outcome.code in FINAL):
        tried += 1
        arguments, ranks = next_try(arguments, ranks, job, still_there())
        where = "" if ranks is None else f" on {ranks} rank{'s' * (ranks > 1)}"
        say(f"{what_happened(outcome.code)}; restart {tried} of {restarts}{where}, {origin(job)}")
        outcome = start(arguments, ranks)
    if line := last_line(outcome.code, job, tried):
        say(line)
    return outcome.code


def next_try(
    arguments: Sequence[str], ranks: int | None, job: Job, still_there: int | None
) -> tuple[list[str], int | None]:
    """The command line that goes on, and the number of ranks."""
    _, words = take_resume(arguments)
    words += [RESUME, "auto"]
    if ranks is None or still_there is None or still_there >= ranks:
        return words, ranks
    if job.micro_batch_size is None:
        # A rank's share grows, and only the old one is known to fit into its memory.
        words += ["--data.micro_batch_size", str(-(-job.largest_batch // ranks))]
    return words, max(still_there, 1)


def what_happened(code: int) -> str:
    """An exit code in words."""
    if code == 128 + signal.SIGKILL:
        return f"the run ended, a process of it was {KILLED}"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"the run ended by {signal_name(code - 128)}"
    return f"the run ended with exit code {code}"


def origin(job: Job) -> str:
    """Where a resumed run begins."""
    found, _ = newest(Path(job.output) / "state")
    return "from the beginning: no state was saved yet" if found is None else f"from {found}"


def last_line(code: int, job: Job, tried: int) -> str | None:
    """What happened and how to go on; None where all is well, or has been said."""
    found, _ = newest(folder := Path(job.output) / "state")
    if found is not None:
        advice = f"{'once that is cured, ' * (code == MISTAKE)}{RESUME} goes on from {found}"
    elif state_folders(folder):
        advice = f"none of the states in {folder} is whole"
    else:
        advice = "no state was saved yet: start it again"
    if code == 0 or (code == MISTAKE and found is None):
        return None
    tries = f", after {tried} restart{'s' * (tried > 1)}" if tried else ""
    return f"{what_happened(code)}{tries}; {advice}"


def take_restarts(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Split `--restarts N` from a command line.

    Errors: ValueError for what is no number, and where nothing is trained.
    """
    rest = list(arguments)
    for place, word in enumerate(rest):
        option, equals, value = word.partition("=")
        if option != "--restarts":
            continue
        if rest[0] != "train":
            raise ValueError("--restarts: goes with `vlds train` alone")
        value = value if equals else "".join(rest[place + 1 : place + 2])
        if not value.isdecimal():
            raise ValueError(f"--restarts is {value!r}; give a number, 0 or more")
        del rest[place : place + (1 if equals else 2)]
        return int(value), rest
    return 0, rest


def take_resume(arguments: Sequence[str]) -> tuple[Literal["auto"] | bool, list[str]]:
    """Split `--resume` or `--resume auto` from a command line.

    Errors: ValueError for any other word after it.
    """
    rest: list[str] = []
    resume: Literal["auto"] | bool = False
    place = 0
    while place < len(arguments):
        option, equals, value = arguments[place].partition("=")
        place += 1
        if option != RESUME:
            rest.append(arguments[place - 1])
            continue
        if not equals and place < len(arguments) and not arguments[place].startswith("-"):
            value = arguments[place]
            place += 1
        if value not in ("", "auto"):
            raise ValueError(f"{RESUME}: got {value!r}; give {RESUME} alone, or {RESUME} auto")
        resume = "auto" if value else True
    return resume, rest
