"""What happens after a run has failed: a last line, and with `--restarts N` another try.

A run is restarted if another try may succeed: a rank died, the launcher is lost, a collective timed
out. It is not restarted if the fault would come back (exit code 2: recipe, data, memory, disk,
numbers), or if somebody asked for the end (SIGTERM, Ctrl-C, SIGHUP).
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
JOB_FILE = "VLDS_JOB_FILE"
"""Environment variable that names the file into which the only rank of a run writes its `Job`."""
FINAL = (0, MISTAKE, *(128 + number for number in ASKING))
"""Exit codes after which a run is not restarted."""


@dataclass(frozen=True)
class Job:
    """What the supervisor needs to know of a recipe."""

    output: str
    largest_batch: int
    """Examples of its largest global batch."""
    micro_batch_size: int | None


Run = Callable[[Words], Outcome]
"""Runs a command line on its ranks, to its end."""


def run_job(
    run: Run,
    words: Words,
    read_job: Callable[[], Job | None],
    ranks_available: Callable[[], int | None],
) -> int:
    """Run `vlds train`, with restarts; the exit code.

    `read_job`: called after the first try; None if that did not come to know its recipe.
    `ranks_available`: how many ranks could start now; None if the user's launcher arguments decide
    that.
    """
    outcome, restarts = run(words), 0
    if (job := read_job()) is None:
        if outcome.code not in (0, MISTAKE):
            say(f"{what_happened(outcome.code)} before its recipe was read: start it again")
        return outcome.code
    while restarts < words.restarts and not (outcome.asked or outcome.code in FINAL):
        restarts += 1
        words = next_try(words, job, ranks_available())
        ranks = "" if words.ranks is None else f" on {words.ranks} rank{'s' * (words.ranks > 1)}"
        happened = what_happened(outcome.code)
        say(f"{happened}; restart {restarts} of {words.restarts}{ranks}, {origin(job)}")
        outcome = run(words)
    if line := last_line(outcome, job, restarts):
        say(line)
    return outcome.code


def next_try(words: Words, job: Job, available: int | None) -> Words:
    """The command line that resumes the run, on the ranks that are left. It has no --profile: too
    few steps may be left for that."""
    words = replace(words, resume="auto", profile=0)
    if words.ranks is None or available is None or available >= words.ranks:
        return words
    rest = words.rest
    if job.micro_batch_size is None:
        # On fewer ranks each one's share of the batch grows. The old share is known to fit into
        # memory, so keep it and accumulate gradients.
        share = -(-job.largest_batch // words.ranks)
        rest = (*rest, "--data.micro_batch_size", str(share))
    return replace(words, rest=rest, ranks=max(available, 1))


def what_happened(code: int) -> str:
    """An exit code in words."""
    if code == 128 + signal.SIGKILL:
        return f"the run ended, one of its processes was {KILLED}"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"the run ended by {signal_name(code - 128)}"
    return f"the run ended with exit code {code}"


def origin(job: Job) -> str:
    """Where a resumed run starts."""
    state, _ = newest(Path(job.output) / "state")
    return "from the beginning: no state was saved yet" if state is None else f"from {state}"


def last_line(outcome: Outcome, job: Job, restarts: int) -> str | None:
    """What happened and how to continue; None after a success, or if the run has said it."""
    code = outcome.code
    state, _ = newest(folder := Path(job.output) / "state")
    if code == 0 or outcome.stopped or (code == MISTAKE and state is None):
        return None
    if state is not None:
        first = "when that is fixed, " if code == MISTAKE else ""
        advice = f"{first}{RESUME} continues from {state}"
    elif state_folders(folder):
        advice = f"none of the states in {folder} is whole"
    else:
        advice = "no state was saved yet: start it again"
    tries = f", after {restarts} restart{'s' * (restarts > 1)}" if restarts else ""
    return f"{what_happened(code)}{tries}; {advice}"
