"""Help of `vlds`: its own page, and what a command's page says around its options."""

from __future__ import annotations

from collections.abc import Callable

from vlds.cli.supervisor import RANK_COMMANDS
from vlds.runtime.command_line import CommandParser, description_of

READ_RUNS = ("evaluate", "predict", "convert", "report")
"""Commands that open runs and artifacts, which may come from someone else."""

ROOT = """\
Tune a few percent of a frozen vision-and-language model on many tasks at once.

  vlds demo                        try everything once, on drawn pictures
  vlds train recipes/demo.yaml     train a recipe
  vlds COMMAND --help              list the options of a command

Commands:

"""
ROOT_END = """\
train, evaluate, predict and features start one process (rank) per GPU, or one process on a machine
without a GPU. For another number, give --ranks N or set the environment variable VLDS_RANKS.
VLDS_LAUNCHER_ARGS holds options for the deepspeed launcher (--hostfile, --no_ssh, --node_rank,
--master_addr, --master_port, ...).

On SIGTERM, SIGINT (Ctrl-C) and SIGHUP, `vlds train` saves and ends. Ranks that are still running
after VLDS_GRACE_S seconds (default: 120) are killed.
"""
SUMMARIES = {
    "demo": "try everything once, on drawn pictures",
    "train": "train a recipe",
    "evaluate": "score a run on data sets, or score a file of predictions",
    "predict": "answer questions about pictures, or write leaderboard files",
    "report": "compare runs: a page with charts, or tables",
    "sweep": "run recipes with several seeds, for a table",
    "compare": "show runs, or a sweep, as one table",
    "convert": "export a run to another format, or import one",
    "describe": "count a recipe's parameters by part",
    "plan": "forecast a run: the bytes of each rank, and the time of a step",
    "features": "store a vision encoder's output for a data set",
    "importance": "find out which weights of a backbone matter, for LST",
}
"""In the order in which a newcomer meets the commands."""
RUN_KEYS = """\
change keys of the run's recipe, as in `vlds train`: keys of its tasks and data, such as
--tasks.vqa.decoding.answers FILE or --data.eval_batch_size 16"""
EPILOGS = {
    "evaluate": f"With --run, further options {RUN_KEYS}. With --predictions, they are fields of "
    "the task class, such as --choices FILE of GQA.",
    "predict": f"Further options {RUN_KEYS}.",
    "features": "Further options are keys of the recipe, as in `vlds train`.",
    "importance": "Further options are keys of the recipe, as in `vlds train`.",
    "sweep": "Further options are keys of the file, such as --seeds '[0]' or "
    "--overrides.training.steps 10.",
    "compare": "With a sweep, further options are keys of its file, as in `vlds sweep`.",
}

# These commands take a recipe, whose keys jsonargparse parses. Its own help lists all keys, some
# hundreds, so it is shown for --help-all only.

RECIPE = """\
  RECIPE               a YAML file of yours, or one of vlds: recipes/demo.yaml
  --KEY VALUE          set a key of the recipe
  --config FILE        add another recipe; its keys take precedence
  --print_config       print the whole recipe with its defaults, and exit
  --help-all           list all keys with their meanings and defaults
"""
TRAIN = f"""\
usage: vlds train RECIPE [--KEY VALUE ...] [options]

Train a recipe on all ranks. The artifact, states, metrics and predictions go
to the recipe's `output` folder.

  vlds train recipes/demo.yaml
  vlds train my.yaml --training.steps 200 --optimizer.learning_rate 1e-4
  vlds train my.yaml --ranks 2 --restarts 3
  vlds train my.yaml --resume

processes:
  --ranks N            processes; default: one per GPU, or one without a GPU
  --resume             continue the run in `output` from its newest state
  --resume auto        continue if there is a state, else start a new run
  --restarts N         restart a failed run at most N times (default: 0)
  --new_phase          with --resume: continue with another mixture of tasks;
                       each task keeps its place in its data
  --profile N          after two steps, say where the time of N steps goes (at
                       most 50), and write a trace; the run goes on

recipe:
{RECIPE}
On Ctrl-C, SIGTERM and SIGHUP the run saves a state and ends. Ranks that are
still running after VLDS_GRACE_S seconds (default: 120) are killed.
VLDS_LAUNCHER_ARGS holds options for the deepspeed launcher (--hostfile,
--master_port, ...).
"""
PLAN = f"""\
usage: vlds plan RECIPE [--ranks N ...] [--memory GB]
                 [--tflops N --bandwidth GB] [--link GB] [--json]
                 [--KEY VALUE ...]

Say what each rank of a recipe's run needs: memory between steps, memory at the
worst moment of a step, and the time of a step. No weights are loaded. To know a
step, vlds reads the recipe's data: it rehearses the largest micro-batch of the
first steps, and times its operations here if this machine has no GPU.

  vlds plan recipes/demo.yaml
  vlds plan my.yaml --ranks 1 2 4 8 --training.precision bf16 --memory 24
  vlds plan my.yaml --ranks 64 --tflops 400 --bandwidth 3000 --link 50

  --ranks N [N ...]    numbers of processes, one table for each (default: 1)
  --memory GB          say how many rows a micro-batch may have in so much
  --tflops N           for a GPU, where a step takes at least: what a rank's can
  --bandwidth GB       do, in 10^12 operations a second, and its memory
  --link GB            and (default: 1) the links between ranks, in GB a second
  --json               print JSON instead of tables
{RECIPE}"""
DESCRIBE = f"""\
usage: vlds describe RECIPE [--json] [--KEY VALUE ...]

Count a recipe's parameters by part, and how many of them train, without
creating any weights.

  vlds describe recipes/demo.yaml
  vlds describe my.yaml --methods.lora.rank 8

  --json               print JSON instead of a table
{RECIPE}"""
PAGES = {"train": TRAIN, "plan": PLAN, "describe": DESCRIBE}


def command_parser(
    command: Callable[[list[str]], int], *, accepts_keys: bool = False
) -> CommandParser:
    """The parser of a command, described by its function's docstring."""
    name = command.__name__
    parser = CommandParser(
        prog=f"vlds {name}",
        description=description_of(command),
        epilog=EPILOGS.get(name),
        allow_abbrev=False,
        accepts_keys=accepts_keys,
    )
    # These two are taken from the command line before it is parsed; here they are for the help.
    shared = parser.add_argument_group("shared options")
    if name in RANK_COMMANDS:
        shared.add_argument(
            "--ranks", metavar="N", help="processes; default: one per GPU, or one without a GPU"
        )
    if name in READ_RUNS:
        shared.add_argument(
            "--trust", metavar="MODULE",
            help="let the run name classes of this Python module, whose code then runs; repeat it "
            "for several modules",
        )  # fmt: skip
    return parser
