"""How the ranks of a run start, and how a run restarts after a fault.

    vlds train ... / ./launch.sh train ...       (main.py -> start, below: the supervisor)
      -> python -m vlds prove ... --short        (with --prove, to its end, before a rank starts)
      -> local.py                                (the launcher; its session ends as a whole)
        -> python -m vlds train ...              (one per rank: main.py -> rank.py -> main.train)

With VLDS_LAUNCHER_ARGS, DeepSpeed's runner and its launch.py stand in local.py's place.
`deepspeed launch.sh train ...` and `torchrun -m vlds train ...` enter at the last line.

A run is restarted (`--restarts N`) if another try may succeed: a rank died, the launcher is lost, a
collective timed out. It is not restarted if the fault would come back (exit code 2: recipe, data,
memory, disk, numbers), or if somebody asked for the end (supervisor.py).
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlds.cli.local import MODULE as LOCAL
from vlds.cli.supervisor import (
    RUNNER,
    SUPERVISOR,
    Outcome,
    grace_from_environment,
    output_of,
    say,
    supervise,
    vlds,
)
from vlds.cli.words import PROVE, RESUME, TRAIN, Words, positive
from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import parse_json
from vlds.runtime.process import (
    ASKING,
    KILLED,
    end_with_parent,
    python,
    signal_name,
    signals_collected,
)
from vlds.runtime.rank_environment import check_alone, check_processes, free_port, without_rank
from vlds.runtime.terminal import has_gpu_driver, set_quiet, tell
from vlds.training.states import newest, state_folders

MISTAKE = 2
FINAL = (0, MISTAKE, *(128 + number for number in ASKING))
"""Exit codes after which a run is not restarted."""
JOB_FILE = "VLDS_JOB_FILE"
"""Environment variable that names the file into which a run's first rank writes its `RunFacts`."""
OWN_NETWORK = ("--hostfile", "-H", "--no_ssh", "--master_port")
"""Launcher arguments with which the user chooses hosts and ports; vlds then adds none."""


@dataclass(frozen=True)
class RunFacts:
    """What the supervisor needs to know of a recipe."""

    output: str
    largest_batch: int
    """Examples of its largest global batch."""
    micro_batch_size: int | None


Run = Callable[[Words], Outcome]
"""Runs a command line on its ranks, to its end."""


def start(words: Words, check: Callable[[Words], int]) -> int:
    """Run a command on its ranks and wait for its end; the exit code. `check` finds mistakes of its
    words that need no library, says them, and returns an exit code."""
    if os.environ.get(SUPERVISOR) == str(os.getppid()):  # as in `vlds demo`
        end_with_parent(signal.SIGTERM)
    launcher_args = shlex.split(os.environ.get("VLDS_LAUNCHER_ARGS", ""))
    several_hosts = rules_over_network(launcher_args)
    with signals_collected() as received:
        if not several_hosts:
            check_alone(os.environ)
        grace_s = grace_from_environment()
        if words.ranks is None and (text := os.environ.get("VLDS_RANKS")):
            words = replace(words, ranks=positive("VLDS_RANKS", text, "the number of ranks"))
        # Before GPUs are counted, which imports torch.
        if (code := check(words)) != 0:
            return code
        # For its errors alone: find mistakes in the number of ranks before the recipe is read.
        launch_command([], words.ranks, launcher_args, os.environ, count_gpus())

        def run(words: Words, variables: Mapping[str, str] | None = None) -> Outcome:
            program = ["-m", "vlds", *words.for_ranks]
            command, env = launch_command(
                program, words.ranks, launcher_args, os.environ, count_gpus()
            )
            saves = words.command == TRAIN
            return supervise(command, {**env, **(variables or {})}, grace_s, received, saves=saves)

        def ranks_available() -> int | None:
            return None if several_hosts else count_gpus() or None

        if words.command != TRAIN:
            outcome = run(words)
            if outcome.asked:
                resumes = "; start it again to continue" if words.command == "features" else ""
                say(f"{words.command} ended by {signal_name(outcome.code - 128)}{resumes}")
            return outcome.code
        if not several_hosts:
            words = replace(words, ranks=words.ranks or count_gpus() or 1)
        elif words.prove:
            raise ValueError(
                f"{PROVE}: each machine would prove the recipe; run `vlds prove RECIPE --short` on "
                "one of them before"
            )
        # A launcher that the user has arguments for may send what a rank says elsewhere, or start
        # ranks on other hosts.
        if launcher_args or words.prove:
            code, facts = read_facts(words, received)
            if facts is None or (words.prove and (code := prove(words, facts, grace_s, received))):
                return code
            return run_with_restarts(run, words, lambda: facts, ranks_available)
        # The first rank can read the recipe itself, which saves the time of another process.
        with scratch_folder() as folder:
            file = folder / "facts.json"

            def run_here(words: Words) -> Outcome:
                # Once: a restart must not end because the hub does not answer any more.
                return run(words, None if written_facts() else {JOB_FILE: str(file)})

            def written_facts() -> RunFacts | None:
                text = file.read_text("utf-8") if file.exists() else ""
                return RunFacts(**parse_json(text)) if text else None

            return run_with_restarts(run_here, words, written_facts, ranks_available)


def read_facts(words: Words, received: Sequence[int]) -> tuple[int, RunFacts | None]:
    """What the supervisor needs to know of a run before it starts.

    Without it, the exit code: the recipe's mistakes were printed, or a signal arrived.

    The recipe is read in a separate process, because the imports take much memory, and the
    supervisor lives as long as the run.
    """
    call = f"check_recipe(sys.argv[1:], {words.ranks})"
    program = f"import sys; from vlds.cli.check_recipe import check_recipe; sys.exit({call})"
    code, output = output_of(python("-c", program, *words.for_ranks), received)
    if code > 128:
        say(f"{what_happened(code)}; no rank had started: start it again")
    if code != 0:
        return code, None
    *printed, line = output.splitlines()
    try:
        return 0, RunFacts(**parse_json(line))
    except ValueError:  # the output of an option such as --print-config
        tell("\n".join([*printed, line]))
        return 0, None


def prove(words: Words, facts: RunFacts, grace_s: float, received: Sequence[int]) -> int:
    """Try the short proof of a run that begins, in one process before all ranks; the exit code.

    A run that has a state resumes: its recipe was proved, or it need not be.
    """
    if newest(Path(facts.output) / "state")[0] is not None:
        return 0
    command = vlds("prove", *words.rest[1:], "--short")
    outcome = supervise(command, without_rank(os.environ), grace_s, received)
    if outcome.asked:
        say(f"the proof ended by {signal_name(outcome.code - 128)}; no rank had started")
    elif outcome.code == 1:
        say(f"the proof fails, so no rank has started; {PROVE} left out, the run starts")
        return MISTAKE
    return outcome.code


def launch_command(
    program: Sequence[str],
    ranks: int | None,
    launcher_args: Sequence[str],
    environment: Mapping[str, str],
    num_gpus: int,
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that start ranks of a Python program, given with its
    arguments.

    Errors: ValueError if there are fewer GPUs than ranks.
    """
    env = without_rank(environment)
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if num_gpus == 0:
        # DeepSpeed would count ranks by this variable even without a GPU.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        env["DS_ACCELERATOR"] = env.get("DS_ACCELERATOR") or "cpu"
        check_processes("--ranks", ranks or 1)
    elif ranks is not None and ranks > num_gpus:
        raise ValueError(
            f"{ranks} ranks asked for, but this machine has {num_gpus} usable GPU(s): "
            f"give --ranks {num_gpus} or fewer, or set DS_ACCELERATOR=cpu to run without GPUs"
        )
    elif visible and ranks:
        # The first GPUs of those that the user lets this process see.
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:ranks])
    # Else each rank would start a thread per core.
    threads = max(1, len(os.sched_getaffinity(0)) // (ranks or max(num_gpus, 1)))
    env.setdefault("OMP_NUM_THREADS", str(threads))
    set_quiet(env)
    if not launcher_args:
        count = str(ranks or max(num_gpus, 1))
        return python("-m", LOCAL, count, free_port(), *python("-u", *program)), env
    # DeepSpeed would take variables for the ranks from the working directory's .deepspeed_env too.
    env.setdefault("DS_ENV_FILE", str(Path.home() / ".deepspeed_env"))
    options = ["--log_level", "critical"]
    # DeepSpeed's runner ignores CUDA_VISIBLE_DEVICES if it gets a number of ranks.
    num = None if visible and num_gpus > 0 else ranks
    if not rules_over_network(launcher_args):
        options += ["--master_port", str(free_port())]
        num = num or (1 if num_gpus == 0 else None)
    if num:
        options += ["--num_gpus", str(num)]
    module = ["--module", *program[1:]] if program[:1] == ["-m"] else program
    return python("-m", RUNNER[-1], *options, *launcher_args, *module), env


def rules_over_network(launcher_args: Sequence[str]) -> bool:
    """True if the user chooses hosts and ports, and with them the number of ranks."""
    return any(word.partition("=")[0] in OWN_NETWORK for word in launcher_args)


def count_gpus() -> int:
    """GPUs that this process may use. Imports torch only if there is a driver."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not has_gpu_driver():
        return 0
    from vlds.runtime import devices

    return devices.count_gpus()


def run_with_restarts(
    run: Run,
    words: Words,
    read_facts: Callable[[], RunFacts | None],
    ranks_available: Callable[[], int | None],
) -> int:
    """Run `vlds train`, with restarts, and say how to continue it; the exit code.

    `read_facts`: called after each try until it knows the recipe; None if it does not.
    `ranks_available`: how many ranks could start now; None if the user's launcher arguments decide
    that.
    """
    outcome, restarts = run(words), 0
    while (facts := read_facts()) is None:
        if outcome.code < 128:
            return outcome.code  # a mistake, or a traceback: it would come again, and was said
        happened = f"{what_happened(outcome.code)} before its recipe was read"
        if restarts == words.restarts or outcome.asked or outcome.code in FINAL:
            say(f"{happened}: start it again")
            return outcome.code
        restarts += 1
        say(f"{happened}; restart {restarts} of {words.restarts}")
        outcome = run(words)
    states = Path(facts.output) / "state"
    while restarts < words.restarts and not (outcome.asked or outcome.code in FINAL):
        restarts += 1
        words = next_try(words, facts, ranks_available())
        ranks = "" if words.ranks is None else f" on {words.ranks} rank{'s' * (words.ranks > 1)}"
        state, _ = newest(states)
        origin = f"from {state}" if state else "from the beginning: no state was saved yet"
        happened = what_happened(outcome.code)
        say(f"{happened}; restart {restarts} of {words.restarts}{ranks}, {origin}")
        outcome = run(words)
    state, _ = newest(states)
    # The run itself has said how to continue if it stopped at a signal, and what is wrong with it
    # if that is a mistake.
    if outcome.code == 0 or outcome.stopped or (outcome.code == MISTAKE and state is None):
        return outcome.code
    if state is not None:
        first = "when that is fixed, " if outcome.code == MISTAKE else ""
        advice = f"{first}{RESUME} continues from {state}"
    elif state_folders(states):
        advice = f"none of the states in {states} is whole"
    else:
        advice = "no state was saved yet: start it again"
    tries = f", after {restarts} restart{'s' * (restarts > 1)}" if restarts else ""
    say(f"{what_happened(outcome.code)}{tries}; {advice}")
    return outcome.code


def next_try(words: Words, facts: RunFacts, available: int | None) -> Words:
    """The command line that resumes the run, on the ranks that are left. It has no --profile: too
    few steps may be left for that."""
    words = replace(words, resume="auto", profile=0)
    if words.ranks is None or available is None or available >= words.ranks:
        return words
    rest = words.rest
    if facts.micro_batch_size is None:
        # On fewer ranks each one's share of the batch grows. The old share is known to fit into
        # memory, so keep it and accumulate gradients.
        # Rounded up: 10 examples on 4 ranks were at most 3 each.
        share = -(-facts.largest_batch // words.ranks)
        rest = (*rest, "--data.micro_batch_size", str(share))
    return replace(words, rest=rest, ranks=max(available, 1))


def what_happened(code: int) -> str:
    """An exit code in words."""
    if code == 128 + signal.SIGKILL:
        return f"the run ended, one of its processes was {KILLED}"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"the run ended by {signal_name(code - 128)}"
    return f"the run ended with exit code {code}"
