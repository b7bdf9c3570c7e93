"""What follows when a run has failed: the last line, and with `--restarts N` another try.

Restarted is what another try can cure: a rank that died, a lost launcher, a collective that timed
out. Not restarted is what would come again (exit code 2: recipe, data, memory, disk, numbers), and
what somebody asked for (SIGTERM, Ctrl-C, SIGHUP).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vlds.launch.supervisor import Outcome, say
from vlds.launch.words import RESUME, Words
from vlds.runtime.process_end import ASKING, KILLED, signal_name
from vlds.training.states import newest, state_folders

MISTAKE = 2
FINAL = (0, MISTAKE, *(128 + number for number in ASKING))
"""Exit codes after which another try is of no use, or not wanted."""


@dataclass(frozen=True)
class Job:
    """What the supervisor has to know of a recipe."""

    output: str
    largest_batch: int
    """Examples of its largest global batch."""
    micro_batch_size: int | None


Run = Callable[[Words], Outcome]
"""Runs a command line on its ranks, to its end."""


def run_job(run: Run, words: Words, job: Job, ranks_available: Callable[[], int | None]) -> int:
    """Run `vlds train` until it ends well or for good; the exit code. `ranks_available`: how many
    ranks could start now; None where that is not ours to say."""
    outcome, tried = run(words), 0
    while tried < words.restarts and not (outcome.asked or outcome.code in FINAL):
        tried += 1
        words = next_try(words, job, ranks_available())
        where = "" if words.ranks is None else f" on {words.ranks} rank{'s' * (words.ranks > 1)}"
        happened = what_happened(outcome.code)
        say(f"{happened}; restart {tried} of {words.restarts}{where}, {origin(job)}")
        outcome = run(words)
    if line := last_line(outcome.code, job, tried):
        say(line)
    return outcome.code


def next_try(words: Words, job: Job, available: int | None) -> Words:
    """The command line that resumes, on the ranks that are left."""
    words = replace(words, resume="auto")
    if words.ranks is None or available is None or available >= words.ranks:
        return words
    rest = words.rest
    if job.micro_batch_size is None:
        # A rank's share grows, and only the old one is known to fit into its memory.
        share = -(-job.largest_batch // words.ranks)
        rest = (*rest, "--data.micro_batch_size", str(share))
    return replace(words, rest=rest, ranks=max(available, 1))


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
