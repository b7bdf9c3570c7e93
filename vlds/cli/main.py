"""The command `vlds`: a rank works; any other process starts ranks, or runs the command itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from vlds.cli.help_texts import PAGES, READ_RUNS, ROOT, ROOT_END, SUMMARIES, command_parser
from vlds.cli.rank import run_rank
from vlds.cli.start import start
from vlds.cli.supervisor import ALL_KEYS, HELP_WORDS, TRAIN, positive, say, split_words
from vlds.cli.use_run import compare, evaluate, predict, report, sweep
from vlds.runtime.checks import guess
from vlds.runtime.command_line import CommandParser
from vlds.runtime.disk import names_fit
from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.ranks import is_rank
from vlds.runtime.terminal import complain, quiet_libraries, tell, tell_exception

# The commands of `vlds`: one function each, which parses its options, then runs.


def run_command(argv: Sequence[str]) -> int:
    """Run one command; the exit code. A user's mistake is one line on stderr and exit code 2."""
    arguments = list(argv) or ["--help"]
    name = arguments[0]
    try:
        if name.startswith("-"):
            root_parser().parse_args(arguments)
        if name not in COMMANDS:
            server = "the server is `vlds predict --serve`; "
            hint = server if name == "serve" else guess(name, COMMANDS)
            raise ValueError(f"no such command; {hint}commands: {', '.join(COMMANDS)}")
        asks_help = not HELP_WORDS.isdisjoint(arguments)
        if asks_help and name in PAGES:
            tell(PAGES[name].rstrip())
            return 0
        arguments = ["--help" if word == ALL_KEYS else word for word in arguments]
        if name in READ_RUNS and not asks_help:
            from vlds.recipe.paths import leave_working_directory, take_trust

            leave_working_directory()
            arguments = take_trust(arguments)
        with names_fit():
            return COMMANDS[name](arguments[1:])
    except ValueError as error:
        return complain("vlds" if name.startswith("-") else f"vlds {name}", error)


def root_parser() -> CommandParser:
    """The parser of `vlds --help` and `vlds --version`."""
    commands = "\n".join(f"  {name:11}{summary}" for name, summary in SUMMARIES.items())
    parser = CommandParser(prog="vlds", description=f"{ROOT}{commands}", epilog=ROOT_END)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument(
        "--version", action="version", version=f"vlds {version('vlds')}",
        help="show the version of vlds and exit",
    )  # fmt: skip
    return parser


def train(arguments: list[str]) -> int:
    """Train a recipe on all ranks."""
    words = split_words([TRAIN, *arguments])
    from vlds.cli.rank import report_job
    from vlds.recipe.config import parse_recipe
    from vlds.runtime.ranks import rank_from_environment
    from vlds.runtime.reproducible import pin_arithmetic
    from vlds.training.loop import train as run

    recipe = parse_recipe(words.rest[1:], "vlds train")
    if recipe.training.reproducible:
        pin_arithmetic(rank_from_environment())
    report_job(recipe, words.resume)
    return run(recipe, resume=words.resume, new_phase=words.new_phase, profile=words.profile)


def describe(arguments: list[str]) -> int:
    """Count a recipe's parameters by part, without creating any weights."""
    from vlds.evaluation.sources import with_lists
    from vlds.models.build import describe as count
    from vlds.recipe.config import parse_recipe

    as_json = "--json" in arguments
    words = [word for word in arguments if word != "--json"]
    recipe = with_lists(parse_recipe(words, "vlds describe"))
    counts = count(recipe.model_setup, list(recipe.tasks))
    tell(json.dumps(counts.as_dict(), indent=1) if as_json else counts.table())
    return 0


def plan(arguments: list[str]) -> int:
    """Say what each rank of a recipe's run would need."""
    from vlds.evaluation.sources import with_lists
    from vlds.plan import Machine, forecasts_of, page, plan_recipe, tree
    from vlds.recipe.config import parse_recipe

    parser = CommandParser(prog="vlds plan", add_help=False, allow_abbrev=False, accepts_keys=True)
    parser.add_argument("--ranks", nargs="+", default=["1"])
    for option in ("--memory", "--tflops", "--bandwidth", "--link"):
        parser.add_argument(option)
    parser.add_argument("--json", action="store_true")
    options, words = parser.parse_known_args(arguments)
    for word in options.ranks:
        if word.endswith((".yaml", ".yml")):
            raise ValueError(f"--ranks is {word!r}; name the recipe before --ranks")
    numbers = [positive("--ranks", word, "the number of ranks") for word in options.ranks]
    given = {name: getattr(options, name) for name in ("memory", "tflops", "bandwidth", "link")}
    machine = Machine.given(**given)
    recipe = with_lists(parse_recipe(words, "vlds plan"))
    plans = plan_recipe(recipe, numbers)
    trees = {}
    for plan, forecast in forecasts_of(recipe, plans, on_gpu=not machine.is_here):
        if options.json:
            trees[plan.world_size] = tree(plan, recipe, forecast, machine)
            continue
        for piece in page(plan, recipe, forecast, machine):
            tell(piece, flush=True)
        if plan is not plans[-1]:
            tell("")
    if options.json:
        tell(json.dumps(trees, indent=1))
    return 0


def features(arguments: list[str]) -> int:
    """Store a vision encoder's output for every picture of a data set.

    vlds features --config my.yaml --data shards/mine --out shards/mine-features
    """
    parser = command_parser(features, accepts_keys=True)
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
    options, keys = parser.parse_known_args(arguments)
    from vlds.evaluation.features import compute_features
    from vlds.recipe.config import parse_recipe

    recipe = parse_recipe(["--config", options.config, *keys], "vlds features")
    return compute_features(recipe, options.data, options.out, options.name)


def importance(arguments: list[str]) -> int:
    """Find out which weights of a backbone matter, for LST's `importance`.

    vlds importance --config lst.yaml --out importance.safetensors
    """
    parser = command_parser(importance, accepts_keys=True)
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="recipe with the backbone and the tasks"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new file")
    parser.add_argument(
        "--samples", default="1024", metavar="N", help="examples to read (default: 1024)"
    )
    options, keys = parser.parse_known_args(arguments)
    num = positive("--samples", options.samples, "a number of examples")
    if options.out.exists() or not options.out.parent.is_dir():
        what = "exists" if options.out.exists() else "lies in no folder"
        raise ValueError(f"--out: {options.out} {what}; name a new file")
    from vlds.recipe.config import parse_recipe
    from vlds.training.importance import write_importance

    recipe = parse_recipe(["--config", options.config, *keys], "vlds importance")
    write_importance(recipe, options.out, num)
    tell(f"wrote {options.out}")
    return 0


def convert(arguments: list[str]) -> int:
    """Export a run to another format, or import one."""
    from vlds.convert.command import convert as run

    return run(arguments)


def demo(arguments: list[str]) -> int:
    """Try everything once on drawn pictures: data, pretraining, adapters, scores, report.

    vlds demo
    vlds demo --out runs/again --seed 1
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
        "--only-backbone", action="store_true",
        help="make only the data and the frozen backbone, for other runs",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from vlds.cli.demo import run_demo

    return run_demo(options.out, options.seed, options.ranks, only_backbone=options.only_backbone)


FUNCTIONS = (
    train, evaluate, predict, features, importance, describe, plan, convert, report, sweep, compare,
    demo,
)  # fmt: skip
COMMANDS: dict[str, Callable[[list[str]], int]] = {each.__name__: each for each in FUNCTIONS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.excepthook = tell_exception
        quiet_libraries()
    if is_rank(os.environ):
        run_rank(arguments, run_here)
    try:
        words = split_words(arguments)
        if words.starts_ranks:
            return start(words)
    except ValueError as error:
        return complain("vlds", error)
    try:
        with interruptible():
            return run_here(words.for_ranks)
    except Interrupted as error:
        say(f"ended by {error.signal_name}")
        return error.exit_code


def run_here(arguments: Sequence[str]) -> int:
    """Run a command in this process; the exit code. A signal during the import below ends the
    process with one line, too."""

    return run_command(arguments)
