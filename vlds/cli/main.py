"""The command `vlds`: a rank works; any other process starts ranks, or runs the command itself.

The commands that need no run are here, those that open one in use_run.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from inspect import getdoc
from pathlib import Path

from vlds.cli.completion import completion
from vlds.cli.rank import run_rank
from vlds.cli.schema import schema
from vlds.cli.start import start
from vlds.cli.supervisor import say
from vlds.cli.use_run import (
    compare,
    evaluate,
    evaluate_words,
    predict,
    predict_words,
    report,
    sweep,
)  # fmt: skip
from vlds.cli.words import (
    ALL_KEYS,
    EXECUTOR,
    HELP_WORDS,
    MOST_PROFILED,
    NEW_PHASE,
    PROFILE,
    PROVE,
    READ_RUNS,
    RESTARTS,
    RESUME,
    TRAIN,
    Words,
    command_parser,
    positive,
    show_recipe_page,
    split_words,
)
from vlds.runtime.checks import guess
from vlds.runtime.cluster import LOCAL, executor_name, open_cluster
from vlds.runtime.command_line import CommandParser
from vlds.runtime.disk import names_fit
from vlds.runtime.process import Interrupted, interruptible, large_imports
from vlds.runtime.rank_environment import is_rank, rank_of_cluster
from vlds.runtime.terminal import Away, complain, quiet_libraries, tell, tell_exception

ABOUT = """\
Tune a few percent of a frozen vision-and-language model on many tasks at once.

  vlds init --data ROWS --images DIR   write a recipe for your own data
  vlds train RECIPE                    train it
  vlds demo                            try everything once, on drawn pictures
  vlds COMMAND --help                  list the options of a command
"""
ENVIRONMENT = """\
train, evaluate, predict, features and importance start one process (rank) per GPU, or one process
on a machine without a GPU. For another number, give --ranks N or set the environment variable
VLDS_RANKS. VLDS_LAUNCHER_ARGS holds options for the deepspeed launcher (--hostfile, --no_ssh,
--node_rank, --master_addr, --master_port, ...).

On SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1, `vlds train` saves and ends. Ranks that are still
running after VLDS_GRACE_S seconds (default: 120) are killed.
"""
KEYS_TOO = "Further options are keys of the recipe, as in `vlds train`."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # These change the whole process, which is ours only as a program.
    if argv is None:
        sys.excepthook = tell_exception
        quiet_libraries()
    if is_rank(os.environ):
        run_rank(arguments, run_command)
    try:
        words = split_words(arguments)
        if words.starts_ranks:
            # With arguments for a launcher, each machine's task starts that.
            if not os.environ.get("VLDS_LAUNCHER_ARGS") and (own := rank_of_cluster(os.environ)):
                os.environ.update(own)
                run_rank(arguments, run_command)
            return start(words, check_before_ranks)
    except ValueError as error:
        return complain("vlds", error)
    try:
        with interruptible():
            return run_command(words.for_ranks)
    except Interrupted as error:
        say(f"ended by {error.signal_name}")
        return error.exit_code


def check_before_ranks(words: Words) -> int:
    """Find the mistakes of a command line that need no library, before ranks import them; the exit
    code."""
    try:
        with names_fit():
            rest = list(words.rest[1:])
            if words.command in READ_RUNS:
                from vlds.recipe.paths import take_trust

                rest = take_trust(rest)
            CHECKS[words.command](rest, words)
    except ValueError as error:
        return complain(f"vlds {words.command}", error)
    return 0


def run_command(argv: Sequence[str]) -> int:
    """Run one command in this process; the exit code. A user's mistake is one line on stderr and
    exit code 2."""
    arguments = list(argv) or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    name = arguments[0]
    try:
        if name.startswith("-"):
            root_parser().parse_args(arguments)
        if name not in COMMANDS:
            meant = next((ours for ours, names in HABITS.items() if name in names.split()), None)
            hint = f"did you mean `vlds {meant}`? " if meant else guess(name, COMMANDS)
            raise ValueError(f"no such command; {hint}commands: {', '.join(COMMANDS)}")
        asks_help = not HELP_WORDS.isdisjoint(arguments)
        if asks_help and name in RECIPE_PARSERS:
            return show_recipe_page(RECIPE_PARSERS[name]())
        # The recipe's own help lists all keys.
        arguments = ["--help" if word == ALL_KEYS else word for word in arguments]
        if name in READ_RUNS and not asks_help:
            # First of all: a stranger's run must not make Python import files that lie beside it.
            from vlds.recipe.paths import leave_working_directory, take_trust

            leave_working_directory()
            arguments = take_trust(arguments)
        with names_fit():
            return COMMANDS[name](arguments[1:])
    except (ValueError, Away) as error:
        return complain("vlds" if name.startswith("-") else f"vlds {name}", error)


def root_parser() -> CommandParser:
    """The parser of `vlds --help` and `vlds --version`."""
    parser = CommandParser(prog="vlds", description=ABOUT, epilog=ENVIRONMENT)
    parser.add_argument(
        "-v", "-V", "--version", action="version", version=f"vlds {version('vlds')}",
        help="show the version of vlds and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary, _, _ = " ".join((getdoc(command) or "").split()).partition(". ")
        commands.add_parser(name, help=summary.removesuffix("."), accepts_keys=True)
    return parser


# The commands: one function each, which parses its options, then runs. Its docstring is the
# description on its help page, and the first sentence its line on that of `vlds`. What a command
# needs is imported in it, so that a help page waits for no library.


def train(arguments: list[str]) -> int:
    """Train a recipe on all ranks. The artifact, states, metrics and predictions go to the recipe's
    `output` folder.

    vlds train recipes/demo.yaml
    vlds train my.yaml --training.steps 200 --optimizer.learning_rate 1e-4
    vlds train my.yaml --ranks 2 --restarts 3
    vlds train my.yaml --resume
    """
    words = split_words([TRAIN, *arguments])
    with large_imports():
        from vlds.cli.check_recipe import read_recipe
        from vlds.runtime.ranks import rank_from_environment
        from vlds.runtime.reproducible import pin_arithmetic
        from vlds.training.loop import train as run

    recipe = read_recipe(words)
    if recipe.training.reproducible:
        pin_arithmetic(rank_from_environment())
    return run(recipe, resume=words.resume, new_phase=words.new_phase, profile=words.profile)


def train_page() -> CommandParser:
    """What the help of `vlds train` shows; `split_words` parses these options."""
    ends = """\
On Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 the run saves a state and ends. Ranks that are still running
after VLDS_GRACE_S seconds (default: 120) are killed. VLDS_LAUNCHER_ARGS holds options for the
deepspeed launcher (--hostfile, --master_port, ...)."""
    parser = command_parser(train, epilog=ends, add_help=False)
    parser.add_argument(
        RESUME, nargs="?", metavar="auto",
        help="continue the run in `output` from its newest state; with `auto`, start a new run if "
        "there is no state",
    )  # fmt: skip
    parser.add_argument(
        RESTARTS, metavar="N", help="restart a failed run at most N times (default: 0)"
    )
    parser.add_argument(
        NEW_PHASE, action="store_true",
        help=f"with {RESUME}: continue with another mixture of tasks; each task keeps its place in "
        "its data",
    )  # fmt: skip
    parser.add_argument(
        PROVE, action="store_true",
        help="before a new run's first step, try on one process what `vlds prove --short` tries; "
        "if it fails, no step is done",
    )  # fmt: skip
    parser.add_argument(
        PROFILE, metavar="N",
        help="after two steps, say where the time of N steps goes (at most "
        f"{MOST_PROFILED}), and write a trace; the run goes on",
    )  # fmt: skip
    return parser


def describe_parser() -> CommandParser:
    """The parser of `vlds describe`."""
    parser = command_parser(describe, accepts_keys=True, add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def describe(arguments: list[str]) -> int:
    """Count a recipe's parameters by part, and how many of them train, without creating any
    weights.

    vlds describe recipes/demo.yaml
    vlds describe my.yaml --methods.lora.rank 8
    """
    options, words = describe_parser().parse_known_args(arguments)
    check_recipe(words, "vlds describe")
    from vlds.evaluation.sources import with_lists
    from vlds.models.build import describe as count
    from vlds.recipe.config import parse_recipe

    recipe = with_lists(parse_recipe(words, "vlds describe"))
    counts = count(recipe.model_setup, list(recipe.tasks))
    tell(json.dumps(counts.as_dict(), indent=1) if options.json else counts.table())
    return 0


def plan_parser() -> CommandParser:
    """The parser of `vlds plan`."""
    parser = command_parser(plan, accepts_keys=True, add_help=False)
    parser.add_argument(
        "--ranks", nargs="+", default=["1"], metavar="N",
        help="numbers of processes, one table for each (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", metavar="GB", help="say how many rows a micro-batch may have in so much"
    )
    parser.add_argument(
        "--gpu", metavar="NAME",
        help="a card, such as h100-80g, a100-40g or rtx-4090-24g: its memory, and the least time "
        "of a step at its peak rates; the options below replace what they name",
    )  # fmt: skip
    parser.add_argument(
        "--tflops", metavar="N",
        help="with --bandwidth: the least time of a step on GPUs that do N x 10^12 operations a "
        "second each",
    )  # fmt: skip
    parser.add_argument(
        "--bandwidth", metavar="GB", help="with --tflops: GB a second of such a GPU's memory"
    )
    parser.add_argument(
        "--link", metavar="GB", help="GB a second of the links between ranks (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def plan(arguments: list[str]) -> int:
    """Forecast a run: the bytes of each rank, and the time of a step. It tells the memory between
    steps and at the worst moment of a step. No weights are loaded. To know a step, vlds reads the
    recipe's data: it rehearses the largest micro-batch of the first steps, and times its operations
    here if this machine has no GPU.

    vlds plan recipes/demo.yaml
    vlds plan my.yaml --ranks 1 2 4 8 --training.precision bf16 --memory 24
    vlds plan my.yaml --ranks 2 --gpu rtx-4090-24g
    vlds plan my.yaml --ranks 64 --tflops 400 --bandwidth 3000 --link 50
    """
    options, words = plan_parser().parse_known_args(arguments)
    # `nargs="+"` takes the recipe for a number, if it stands behind --ranks.
    for word in options.ranks:
        if word.endswith((".yaml", ".yml")):
            raise ValueError(f"--ranks is {word!r}; name the recipe before --ranks")
    numbers = [positive("--ranks", word, "the number of ranks") for word in options.ranks]
    names = ("memory", "tflops", "bandwidth", "link", "gpu")
    check_recipe(words, "vlds plan")
    from vlds.evaluation.sources import with_lists
    from vlds.plan import Machine, as_json, pages
    from vlds.recipe.config import parse_recipe

    recipe = with_lists(parse_recipe(words, "vlds plan"))
    given = {name: getattr(options, name) for name in names}
    machine = Machine.given(**given, dtype=recipe.training.dtype)
    pieces = (
        [as_json(recipe, numbers, machine)] if options.json else pages(recipe, numbers, machine)
    )
    for piece in pieces:
        tell(piece, flush=True)
    return 0


def prove_parser() -> CommandParser:
    """The parser of `vlds prove`."""
    parser = command_parser(prove, accepts_keys=True, add_help=False)
    for option, what in (("--only", "try these alone"), ("--skip", "leave these out")):
        parser.add_argument(
            option, nargs="+", default=[], metavar="PROPERTY",
            help=f"{what}, by the names that the command prints",
        )  # fmt: skip
    parser.add_argument(
        "--rows", metavar="N",
        help="examples that are compared, over all tasks, at least two of each (default: 16)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", metavar="N",
        help="steps in which a few examples are learnt by heart (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--short", action="store_true",
        help="as `vlds train --prove`: only what takes seconds, on few examples",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of proof.html and proof.json; default: that of the run, or the recipe's "
        "`output`, with -proof behind its name",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, and the lines on stderr")
    return parser


def prove(arguments: list[str]) -> int:
    """Show on a recipe's own model and data that what vlds computes is right: what the model reads,
    gradients, what trains, batches, ranks, resuming, answers, exports. The exit code is 0 if all
    properties hold. Of a run or artifact, the trained weights are tried.

    vlds prove recipes/demo.yaml
    vlds prove my.yaml --only reads-right gradient-parity
    vlds prove my.yaml --rows 8 --steps 100 --model.path weights/other
    vlds prove runs/vqa
    """
    options, words = prove_parser().parse_known_args(arguments)
    # `nargs="+"` takes the recipe for a property, if it stands behind.
    for name in ("only", "skip"):
        for word in getattr(options, name):
            if "/" in word or word.endswith((".yaml", ".yml")):
                raise ValueError(f"--{name} is {word!r}; name the recipe or run before --{name}")
    numbers = {
        name: positive(f"--{name}", text, noun)
        for name, noun in (("rows", "a number of examples"), ("steps", "a number of steps"))
        if (text := getattr(options, name)) is not None
    }
    run = Path(words[0]) if words and Path(words[0]).is_dir() else None
    if run is not None:
        from vlds.recipe.paths import leave_working_directory, take_trust

        # As for the other commands that open runs (`READ_RUNS`), which takes all their recipes.
        leave_working_directory()
        words = take_trust(words)
    else:
        check_recipe(words, "vlds prove")
    from vlds.prove.command import prove_recipe, recipe_of_run
    from vlds.recipe.config import parse_recipe

    if run is not None:
        recipe, place = recipe_of_run(run, words[1:]), run.resolve()
    else:
        recipe = parse_recipe(words, "vlds prove")
        place = Path(recipe.output)
    return prove_recipe(
        recipe, options.out or place.with_name(f"{place.name}-proof"), only=options.only,
        skip=options.skip, short=options.short, as_json=options.json, **numbers,
    )  # fmt: skip


def check_recipe(words: Sequence[str], prog: str) -> None:
    """Find the mistakes of a recipe and its keys that need no library. Errors: ValueError."""
    from vlds.recipe.parse import named_first
    from vlds.recipe.sketch import check_words

    check_words(named_first(words, prog))


def check_train(words: Sequence[str], asked: Words) -> None:
    """As `check_recipe`; files, data, output and ranks must be fit for a run, too. Errors:
    ValueError."""
    from vlds.recipe.parse import PRINT, named_first
    from vlds.recipe.sketch import check_words
    from vlds.training.states import check_output

    starts = PRINT not in words
    # A run that is resumed in another folder is told so first.
    tree = check_words(named_first(words, "vlds train"), files=starts and asked.resume is False)
    if not starts or tree is None:
        return
    size = str(tree.get("data", {}).get("global_batch_size"))  # a text from the command line
    if size.isdecimal() and not any("batch_size" in task for task in tree["tasks"].values()):
        from vlds.data.order.mixed_order import BatchCut

        BatchCut(asked.ranks or 1).check(int(size))
    if isinstance(output := tree.get("output"), str):
        check_output(output, asked.resume)


RECIPE_PARSERS = {
    TRAIN: train_page, "plan": plan_parser, "describe": describe_parser, "prove": prove_parser
}  # fmt: skip
"""Commands that take a recipe and its keys."""


def features(arguments: list[str]) -> int:
    """Store a vision encoder's output for every picture of a data set.

    vlds features --config my.yaml --data shards/mine --out shards/mine-features
    """
    options, words = features_words(arguments)
    from vlds.evaluation.features import compute_features
    from vlds.recipe.config import parse_recipe

    recipe = parse_recipe(words, "vlds features")
    with open_cluster(options.executor) as cluster:
        return compute_features(recipe, options.data, options.out, options.name, cluster)


def features_words(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What its command line says, and the words of the recipe. Errors: ValueError."""
    parser = command_parser(features, accepts_keys=True, epilog=KEYS_TOO)
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="recipe with the encoder as its `vision`"
    )
    parser.add_argument("--data", required=True, metavar="DATASET", help="data set of pictures")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder, or one to continue"
    )
    parser.add_argument(
        "--name", help="name of the new data set; default: the old name and _features"
    )
    parser.add_argument(
        EXECUTOR, default=LOCAL, metavar="WHERE",
        help="what computes: the ranks (local, the default), or workers, each on its GPU or CPU: "
        "dask=ADDRESS of a scheduler or its file; docs/cluster.md has commands",
    )  # fmt: skip
    options, keys = parser.parse_known_args(arguments)
    executor_name(options.executor)
    words = ["--config", options.config, *keys]
    check_recipe(words, "vlds features")
    return options, words


def importance(arguments: list[str]) -> int:
    """Find out which weights of a backbone matter, for LST's `importance`.

    vlds importance --config lst.yaml --out importance.safetensors
    vlds importance --config lst.yaml --out importance.safetensors --ranks 4
    """
    options, words = importance_words(arguments)
    from vlds.recipe.config import parse_recipe
    from vlds.training.importance import write_importance

    recipe = parse_recipe(words, "vlds importance")
    write_importance(recipe, options.out, options.samples)
    return 0


def importance_words(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What its command line says, and the words of the recipe. Errors: ValueError."""
    parser = command_parser(importance, accepts_keys=True, epilog=KEYS_TOO)
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="recipe with the backbone and the tasks"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new file")
    parser.add_argument(
        "--samples", default="1024", metavar="N", help="examples to read (default: 1024)"
    )
    options, keys = parser.parse_known_args(arguments)
    options.samples = positive("--samples", options.samples, "a number of examples")
    if options.out.exists() or not options.out.parent.is_dir():
        what = "exists" if options.out.exists() else "lies in no folder"
        raise ValueError(f"--out: {options.out} {what}; name a new file")
    words = ["--config", options.config, *keys]
    check_recipe(words, "vlds importance")
    return options, words


def convert(arguments: list[str]) -> int:
    """Export a run to another format, or import one."""
    from vlds.convert.command import convert as run

    return run(arguments)


def demo(arguments: list[str]) -> int:
    """Try everything once on drawn pictures: data, adapters, scores, report.

    vlds demo
    vlds demo --out runs/again --seed 1
    vlds demo --out runs/whole --whole
    """
    parser = command_parser(demo)
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N",
        help="processes that train together; default: 2",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR",
        help="folder for all files; default: runs/demo",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of data and runs; default: 0"
    )
    parser.add_argument(
        "--whole", action="store_true",
        help="pretrain the frozen backbone, which is shipped otherwise: twice as long",
    )  # fmt: skip
    parser.add_argument(
        "--only-backbone", action="store_true",
        help="as --whole, and end with the data and the frozen backbone, for other runs",
    )  # fmt: skip
    options = vars(parser.parse_args(arguments))
    from vlds.cli.demo import run_demo

    return run_demo(**options)


def init_parser() -> CommandParser:
    """The parser of `vlds init`."""
    ends = """\
Further options go to `vlds data own`, which packs the data: those that name columns, such
as --answer-field NAME, and those about pictures, such as --skip-missing."""
    parser = command_parser(init, accepts_keys=True, epilog=ends)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PLACE",
        help="file of rows, or a folder with a folder for each class",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="folder of the pictures; default: that of the rows",
    )  # fmt: skip
    parser.add_argument(
        "--group-field", metavar="NAME",
        help="column with the patient, document or scene; rows of one stay in one split",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME",
        help="image-text model to tune: a folder, or its name on the Hugging Face hub; default: a "
        "small model from random weights, or SmolVLM2 with a GPU",
    )  # fmt: skip
    parser.add_argument("--name", help="of recipe, shards and run; default: that of the data")
    return parser


NOT_OF_INIT = {
    "--out": "the shards lie in shards/NAME, with the --name that you give",
    "--epochs": "the recipe that it writes has training.epochs",
    "--steps": "the recipe that it writes has training.epochs",
    "--gpu": "a GPU is taken where there is one",
    "--device": "a GPU is taken where there is one",
}
"""What newcomers try -> where it is."""


def init(arguments: list[str]) -> int:
    """Start with your own data: pack them, draw the splits, write a recipe. The rows tell whether
    they are questions, captions, statements, pictures of classes or conversations.

    vlds init --data rows.csv --images PHOTOS
    vlds init --data rows.csv --images PHOTOS --group-field patient
    vlds init --data FOLDER_OF_CLASSES --model models/smolvlm
    """
    options, words = init_parser().parse_known_args(arguments)
    for word in words:
        if cure := NOT_OF_INIT.get(name := word.partition("=")[0]):
            raise ValueError(f"{name}: no option of vlds init; {cure}")
    for name in ("images", "group_field"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    from vlds.cli.init import run_init

    return run_init(options.data, options.name, options.model, words)


def data(arguments: list[str]) -> int:
    """Make data sets from official files or your own rows, and look at them: `vlds data --help`
    lists what there is.

    vlds data jsonl --task vqa --annotations rows.jsonl --images PHOTOS --out shards/mine
    vlds data stats shards/mine
    """
    from vlds.runtime.process import data_prep

    code: int = data_prep("cli").main(arguments)
    return code


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    command.__name__: command
    for command in (
        init, train, evaluate, predict, demo, data, prove, report, sweep, compare, convert,
        describe, plan, features, importance, schema, completion,
    )
}  # fmt: skip
"""In the order in which a newcomer meets them."""
HABITS = {
    "train": "finetune fine-tune fine_tune fit tune run",
    "evaluate": "test score validate",
    "predict": "infer inference generate ask",
    "predict --serve": "serve server",
    "convert": "export merge",
    "--version": "version",
}
"""Command -> what other programs call it."""
CHECKS: dict[str, Callable[[list[str], Words], object]] = {
    TRAIN: check_train,
    "evaluate": lambda words, _: evaluate_words(words),
    "predict": lambda words, _: predict_words(words),
    "features": lambda words, _: features_words(words),
    "importance": lambda words, _: importance_words(words),
}
"""What looks at the words of a command before it starts ranks (`RANK_COMMANDS`)."""
