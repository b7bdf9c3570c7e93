"""`vlds sweep`: its options, what it says before it starts, several runs at a time, and its end.

A process of a sweep does one part after another (sweep_work.py). With `--at-once N`, N processes do
so on one machine, each with its share of the cores or GPUs: runs that each take all cores would
slow each other down many times over, because their threads wait for each other by spinning.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import IO

from vlds.cli.start import count_gpus, launch_command
from vlds.cli.supervisor import BOUND
from vlds.cli.sweep_work import SweepWork
from vlds.cli.words import positive
from vlds.evaluation.sources import training_sources, with_lists
from vlds.plan import Machine, forecast_or_reason, plan_recipe
from vlds.plan.forecast import Duration
from vlds.report.sweep import Sweep, SweepRun, read_sweep, runs_of
from vlds.report.tables import Cell, Table, TableRow, terminal_table
from vlds.runtime.disk import check_writable
from vlds.runtime.json_files import read_metric_lines
from vlds.runtime.process import Interrupted, python, signals_collected
from vlds.runtime.terminal import complain, duration_text, open_console, shell_command, tell
from vlds.training.prepare import number_of_steps

MODULE = "vlds.cli.sweep"
POLL_S = 0.1


def sweep(
    words: Sequence[str],
    *,
    ranks: str | None,
    runs: str | None,
    at_once: str | None,
    is_dry: bool,
) -> int:
    """Do what is missing of a sweep, or with `is_dry` only say what that is. Returns the exit code:
    1 if something has failed, or if one of its own processes has ended early; 2 of a dry run if a
    row's recipe cannot be built, which is said.

    Errors: ValueError for a mistake in the file, its recipes or the options, before anything runs.
    """
    most = None if runs is None else positive("--runs", runs, "a number of runs")
    num = 1 if at_once is None else positive("--at-once", at_once, "a number of runs")
    if most is not None and num > 1:
        raise ValueError("--runs and --at-once: give one of them")
    given = [] if ranks is None else ["--ranks", ranks]
    num_ranks = None if ranks is None else positive("--ranks", ranks, "the number of ranks")
    num_gpus = count_gpus()
    launch_command([], num_ranks, [], os.environ, num_gpus)  # finds too many ranks
    environments = shares(num, num_ranks or 1, num_gpus, os.environ) if num > 1 else []
    # All files are read and checked before anything runs.
    table = read_sweep(words)
    planned = runs_of(table)
    work = SweepWork(table, planned)
    faults = say_agenda(words[0], table, work, planned, num_ranks or num_gpus // num or 1, num)
    for row, fault in faults.items():
        complain("vlds sweep", ValueError(f"recipes.{row}: {fault}"))
    if is_dry:
        return 2 if faults else 0
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
    done = sum(part not in missing and part.name not in work.failed for part in work.runs)
    tell(f"{done} of {len(work.runs)} runs are done; to see the table:")
    tell(shell_command("vlds", "compare", *words))
    if left := [part.name for part in work.parts if part in missing]:
        tell(f"left, or another process does them: {'; '.join(left)}")
    for name, reason in work.failed.items():
        tell(f"failed: {name}: {reason}", error=True)
    # If nothing is missing, a process that crashed had done its work.
    if missing and not is_whole:
        cause = "one of its processes has ended early"
        tell(f"vlds sweep: {cause}; start it again to continue", error=True)
        return 1
    return 1 if work.failed else 0


def say_agenda(
    file: str,
    sweep: Sweep,
    work: SweepWork,
    runs: Sequence[SweepRun],
    num_ranks: int,
    at_once: int,
) -> dict[str, str]:
    """Print what is done, what is left and its time. Returns the rows whose recipes cannot be
    built, and why."""
    rows, left = [], 0.0
    damaged: list[SweepRun] = []
    faults: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    for row in sweep.rows:
        of_row = [run for run in runs if run.row == row]
        undone = [run for run in of_row if not run.is_done]
        started = sum(run.is_started for run in undone)
        damaged += [run for run in undone if run.is_trained]
        known = estimate(of_row, num_ranks)
        if known.is_fault:
            faults[row] = known.reason
        elif known.reason:
            unknown.setdefault(known.reason, []).append(row)
        left += known.left or 0.0
        times = ["-" if t is None else duration_text(t) for t in (known.run, known.left)]
        if known.left and not known.is_measured:
            times[1] += " (rehearsed)"
        texts = [f"{len(of_row) - len(undone)} of {len(of_row)}", str(started), *times]
        rows.append(TableRow(row, [Cell(text) for text in texts]))
    table = Table(["row", "done", "begun", "a run trains", "left"], rows)
    tell(f"{file}: {len(runs)} runs, in {sweep.output}")
    open_console().print(terminal_table(table))
    if missing := sum(not part.is_done for part in work.preparations):
        tell(f"{missing} of {len(work.preparations)} preparations come first")
    for run in damaged:
        if (damage := run.damage) is not None:
            tell(f"{run.name}: {damage}", error=True)
    for reason, names in unknown.items():
        tell(f"the time of {', '.join(names)} is not known yet: {reason}")
    if left:
        on = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
        how = "one run after another" if at_once == 1 else f"{at_once} runs at a time"
        tell(f"training alone: about {duration_text(left / at_once)} on {on}, {how}")
    return faults


@dataclass(frozen=True)
class Estimate:
    """How long a row's runs train."""

    run: float | None = None
    """Seconds of a whole run; None if they are not known."""
    left: float | None = 0.0
    """Seconds of all of the row's runs that are left."""
    is_measured: bool = False
    """True if a run of this row told it, False if the step was rehearsed."""
    reason: str = ""
    """Why nothing is known."""
    is_fault: bool = False
    """True if the reason is that the recipe cannot be built, though all that it needs is there."""


def estimate(runs: Sequence[SweepRun], num_ranks: int) -> Estimate:
    """The time of a row's runs, from what some have logged, or else from a step that is rehearsed
    on this machine as `vlds plan` does it."""
    missing = [run for run in runs if not run.is_trained]
    logged = []
    for run in runs:
        lines = [line for _, line in read_metric_lines(run.folder / "metrics.jsonl").lines]
        seconds = sum(line.get("seconds", 0.0) for line in lines)
        steps = max((line["step"] for line in lines), default=0)
        if steps > 0 and 0 < seconds < math.inf:
            logged.append(seconds / steps)
    if not missing and not logged:
        return Estimate()
    recipe = runs[0].recipe
    try:
        # These read data, which may not be there yet.
        num_steps = number_of_steps(recipe, training_sources(recipe))
        recipe = recipe if logged else with_lists(recipe)
    except ValueError as error:
        return Estimate(left=None if missing else 0.0, reason=str(error))
    if logged:
        step = min(logged)  # other programs can only make a run slower
    else:
        machine = Machine()
        try:
            (plan,) = plan_recipe(recipe, [num_ranks], on_gpu=not machine.is_here)
        except ValueError as error:
            # A preparation may bring files that the model lacks. Without one, no run of this row
            # can start.
            is_fault = bool(missing) and all(need.exists() for need in runs[0].needs)
            return Estimate(left=None, reason=str(error), is_fault=is_fault)
        forecast = forecast_or_reason(recipe, num_ranks, on_gpu=not machine.is_here)
        if isinstance(forecast, str):
            return Estimate(left=None, reason=forecast)
        try:
            step = Duration.of(plan, recipe, forecast, machine).step
        except ValueError as error:
            return Estimate(left=None, reason=str(error))
    left = sum(max(0, num_steps - run.steps_done) for run in missing)
    return Estimate(num_steps * step, left * step, is_measured=bool(logged))


def shares(
    num: int, ranks: int, num_gpus: int, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """The environment of each process: its GPUs, or its number of threads.

    Errors: ValueError if there are too few GPUs.
    """
    if num_gpus == 0:
        threads = max(1, len(os.sched_getaffinity(0)) // (num * ranks))
        return [{"OMP_NUM_THREADS": str(threads), **environment}] * num
    if num * ranks > num_gpus:
        raise ValueError(
            f"--at-once {num}: {num * ranks} GPUs are asked for, and this machine has {num_gpus}; "
            "give fewer runs at once, or fewer --ranks"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
    # Process n gets the n-th slice of equal size: 8 GPUs for 3 processes -> 0,1 2,3 4,5. GPUs that
    # are left over stay idle.
    names, each = visible.split(","), num_gpus // num
    return [
        {**environment, "CUDA_VISIBLE_DEVICES": ",".join(names[n * each : (n + 1) * each])}
        for n in range(num)
    ]


def work_at_once(
    words: Sequence[str], ranks: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> bool:
    """Work on a sweep in so many processes; what one prints begins with its number. `words`: the
    sweep's file and keys. `ranks`: words that say how many each run has. Returns False if one was
    killed or has crashed; that a run failed is not a crash.

    Errors: Interrupted, once all have saved and ended, if a signal asked for it.
    """
    # Bound to this process: if it is killed, they save and end.
    command = python("-c", BOUND, *python("-um", MODULE, *ranks, "--", *words))

    def show(lines: IO[str], number: int) -> None:
        for line in lines:
            tell(f"{number}| {line}", end="", flush=True)

    with signals_collected() as received:
        processes = [
            # In separate sessions, so that Ctrl-C in the terminal reaches each once.
            subprocess.Popen(
                command, env=environment, start_new_session=True, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for environment in environments
        ]  # fmt: skip
        readers = [
            Thread(target=show, args=(process.stdout, number))
            for number, process in enumerate(processes, 1)
        ]
        for reader in readers:
            reader.start()
        num_passed = 0
        while any(process.poll() is None for process in processes):
            # Each signal is passed on once, since a second Ctrl-C ends runs without saving.
            for number in received[num_passed:]:
                for process in processes:
                    process.send_signal(number)
                num_passed += 1
            time.sleep(POLL_S)
        for reader in readers:
            reader.join()
    if received:
        raise Interrupted(received[0])
    return all(process.returncode == 0 for process in processes)


def main(arguments: Sequence[str]) -> int:
    """One of the processes; the exit code. The process that started it says what has failed."""
    at = arguments.index("--")  # words about ranks stand before it, those of the sweep behind
    ranks, words = arguments[:at], arguments[at + 1 :]
    sweep = read_sweep(words)
    try:
        SweepWork(sweep, runs_of(sweep)).do(None, ranks)
    except Interrupted as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
