"""`vlds sweep`: its options, what it says before it starts, and how it ends."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from vlds.cli.at_once import shares, work_at_once
from vlds.cli.start import count_gpus, launch_command
from vlds.cli.sweep_work import Part, Work, say_agenda
from vlds.cli.words import positive
from vlds.report.sweep import read_sweep, runs_of
from vlds.runtime.disk import check_writable
from vlds.runtime.process import Interrupted
from vlds.runtime.terminal import tell


def sweep(
    words: Sequence[str],
    *,
    ranks: str | None,
    runs: str | None,
    at_once: str | None,
    is_dry: bool,
) -> int:
    """Do what is missing of a sweep, or with `is_dry` only say what that is. Returns the exit code:
    1 if something has failed, or if one of its own processes has ended early.

    Errors: ValueError for a mistake in the file, its recipes or the options, before anything runs.
    """
    most = None if runs is None else positive("--runs", runs, "a number of runs")
    num = 1 if at_once is None else positive("--at-once", at_once, "a number of runs")
    if most is not None and num > 1:
        raise ValueError("--runs and --at-once: give one of them")
    given = [] if ranks is None else ["--ranks", ranks]
    num_ranks = None if ranks is None else positive("--ranks", ranks, "the number of ranks")
    num_gpus = count_gpus()
    launch_command([], num_ranks, [], os.environ, num_gpus)
    environments = shares(num, num_ranks or 1, num_gpus, os.environ) if num > 1 else []
    table = read_sweep(words)
    planned = runs_of(table)
    work = Work(table, planned)
    say_agenda(words[0], table, work, planned, num_ranks or num_gpus // num or 1, num)
    if is_dry:
        return 0
    check_writable(work.folder, "output")
    is_whole = True
    try:
        if environments:
            is_whole = work_at_once(words, given, environments)
        else:
            work.do(most, given)
    except Interrupted as error:
        tell(f"vlds sweep: ended by {error.signal_name}; start it again to continue", error=True)
        return error.exit_code
    missing = work.missing
    say_end(words, work, missing)
    if missing and not is_whole:
        cause = "one of its processes has ended early"
        tell(f"vlds sweep: {cause}; start it again to continue", error=True)
        return 1
    return 1 if work.failed else 0


def say_end(words: Sequence[str], work: Work, missing: Sequence[Part]) -> None:
    """Say what is done, what has failed and what is left."""
    done = sum(part.is_done for part in work.runs)
    tell(f"{done} of {len(work.runs)} runs are done; to see the table:")
    tell(shlex.join(["vlds", "compare", *words]))
    if left := [part.name for part in work.parts if part in missing]:
        tell(f"left, or another process does them: {'; '.join(left)}")
    for name, reason in work.failed.items():
        tell(f"failed: {name}: {reason}", error=True)
