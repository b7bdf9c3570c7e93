"""The command line: one function a command, which parses, builds and runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from vlds.cli.help_texts import RANKS_HELP, described
from vlds.cli.recipe_help import HELP
from vlds.launch.rank import complain
from vlds.launch.words import ALL_KEYS, HELP_WORDS, TRAIN, positive, split_words
from vlds.runtime.disk import names_fit
from vlds.runtime.help_page import HelpPage
from vlds.runtime.near_names import guess
from vlds.runtime.terminal import tell

DESCRIPTION = """\
Tune a few percent of a frozen vision-and-language model on many tasks at once.

  vlds demo                                 everything once, on made pictures
  vlds train recipes/demo.yaml              run a recipe
  vlds COMMAND --help                       a command's options
"""

CHANGES_HELP = """\
Further options change keys of the run's recipe, as in `vlds train`: those of its tasks and data,
like --tasks.vqa.decoding.answers FILE or --data.eval_batch_size 16."""
EVALUATE_HELP = """\
Further options: with --run they change keys of the run's recipe, as in `vlds train`: those of its
tasks and data, like --tasks.vqa.decoding.answers FILE or --data.eval_batch_size 16; with
--predictions they are fields of the task class, like --choices FILE of GQA."""
TRUST_HELP = """\
--trust MODULE lets the run name classes of a Python module of your own; the module's code runs."""
READ_RUNS = ("evaluate", "predict", "convert", "report")
"""Commands that open runs and artifacts, which may come from someone else."""


def run_command(argv: Sequence[str]) -> int:
    """Run one command; the exit code. What the user got wrong is one line on stderr and code 2."""
    commands = "\n".join(f"  {name:10}{summary}" for name, summary in SUMMARIES.items())
    parser = argparse.ArgumentParser(
        prog="vlds",
        description=f"{DESCRIPTION}\ncommands:\n{commands}",
        epilog=RANKS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those above")
    parser.add_argument("--version", action="version", version=f"vlds {version('vlds')}",
                        help="show the version of vlds and exit")  # fmt: skip
    arguments = list(argv)
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments or ["--help"])
    try:
        if arguments[0] not in COMMANDS:
            hint = guess(arguments[0], COMMANDS)
            raise ValueError(f"no such command; {hint}commands: {', '.join(COMMANDS)}")
        if arguments[0] in HELP and HELP_WORDS.intersection(arguments):
            tell(HELP[arguments[0]].rstrip())
            return 0
        arguments = ["--help" if word == ALL_KEYS else word for word in arguments]
        if arguments[0] in READ_RUNS and not HELP_WORDS.intersection(arguments):
            from vlds.recipe.trusted import leave_working_directory, take_trust

            leave_working_directory()
            arguments = take_trust(arguments)
        with names_fit():
            return COMMANDS[arguments[0]](arguments[1:])
    except ValueError as error:
        return complain(f"vlds {arguments[0]}", error)


def train(arguments: list[str]) -> int:
    """Run a recipe on all ranks."""
    words = split_words([TRAIN, *arguments])
    from vlds.config import parse_recipe
    from vlds.training.loop import train as run

    recipe = parse_recipe(words.rest[1:], "vlds train")
    return run(recipe, resume=words.resume, new_phase=words.new_phase)


def describe(arguments: list[str]) -> int:
    """Count a recipe's parameters by part, without making them."""
    from vlds.config import parse_recipe
    from vlds.models.build import describe as count

    as_json = "--json" in arguments
    recipe = parse_recipe([word for word in arguments if word != "--json"], "vlds describe")
    counts = count(recipe.model, list(recipe.tasks))
    tell(json.dumps(counts.as_dict(), indent=1) if as_json else counts.table())
    return 0


def plan(arguments: list[str]) -> int:
    """Say how many bytes each rank of a recipe's run would hold, before it starts."""
    from vlds.config import parse_recipe
    from vlds.plan import plan_recipe, table

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--ranks", nargs="+", default=["1"])
    own.add_argument("--json", action="store_true")
    options, words = own.parse_known_args(arguments)
    numbers = [positive("--ranks", word) for word in options.ranks]
    recipe = parse_recipe(words, "vlds plan")
    plans = plan_recipe(recipe, numbers)
    if options.json:
        tree = {
            ranks: {file: asdict(held) for file, held in plan.items()}
            for ranks, plan in plans.items()
        }
        tell(json.dumps(tree, indent=1))
    else:
        tell("\n\n".join(table(plan, recipe, ranks) for ranks, plan in plans.items()))
    return 0


def evaluate(arguments: list[str]) -> int:
    """Score a run on data sets, or a file of predictions."""
    parser = command_parser("evaluate", EVALUATE_HELP)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="folder that `vlds train` wrote: decode and score")
    what.add_argument(
        "--predictions", type=Path, nargs="+", metavar="FILE",
        help="score these answers, whoever made them, without a model: a leaderboard's file, or "
        "one that vlds wrote",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="DATASET",
        help="data set folders, TASK=FOLDER where several tasks of the run could read it; default: "
        "those of the run's recipe. With --predictions: the data sets that they answer",
    )  # fmt: skip
    add_split(parser)
    parser.add_argument(
        "--task", metavar="CLASS",
        help="with --predictions: the task class that scores them; default: the one that reads "
        "such data",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where predictions and scores are written; default: below RUN/predictions, or nowhere",
    )  # fmt: skip
    options, changes = parser.parse_known_args(arguments)
    check_split(options)
    if options.predictions:
        from vlds.evaluation.score_file import score_file

        return score_file(options.predictions, options.data, options.task, changes, options.out)
    if options.task:
        raise ValueError(
            "--task: goes with --predictions; a run has its tasks, so say --data TASK=DATASET"
        )
    from vlds.inference import answer_sets

    return answer_sets(options.run, options.data, options.split, options.out, changes, score=True)


def add_split(parser: argparse.ArgumentParser) -> None:
    """`--split`."""
    parser.add_argument(
        "--split", nargs="+", default=[], choices=["evaluate", "test"],
        help="lists of the run's recipe: the data sets that its tasks name under `evaluate` or "
        "`test`; results on test data are called TASK.test; vlds evaluate's default: both",
    )  # fmt: skip


def check_split(options: argparse.Namespace) -> None:
    """Errors: ValueError where --split stands beside what says by itself which data are read."""
    if options.split and (options.data or getattr(options, "predictions", None)):
        raise ValueError(
            "--split: means data sets of the run's recipe, and does not go with --data or "
            "--predictions; give one of them"
        )


def predict(arguments: list[str]) -> int:
    """Answer a question about pictures, describe them, or write what a leaderboard takes."""
    parser = command_parser("predict", CHANGES_HELP)
    parser.add_argument("--run", type=Path, required=True, help="folder that `vlds train` wrote")
    parser.add_argument(
        "--serve", action="store_true",
        help="keep the model open and answer many questions: on a page, and as JSON for programs; "
        "for this machine alone",
    )  # fmt: skip
    parser.add_argument("--port", type=int, help="with --serve; 0: any free one; default: 8000")
    parser.add_argument(
        "--image", type=Path, nargs="+", metavar="FILE", help="a picture, or the two of a pair"
    )
    parser.add_argument("--question", default="", help="question or statement; none for captions")
    parser.add_argument("--task", help="the run's task; needed where it has several")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="DATASET",
        help="instead of pictures: data set folders, all of which is answered; TASK=FOLDER where "
        "several tasks of the run could read it",
    )  # fmt: skip
    add_split(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="with --data or --split: where predictions and the leaderboards' files are written; "
        "default: RUN/predictions",
    )  # fmt: skip
    options, changes = parser.parse_known_args(arguments)
    check_split(options)
    if options.serve or options.port is not None:
        check_serve(options)
        from vlds.serve.server import serve

        return serve(options.run, 8000 if options.port is None else options.port, changes)
    from vlds.inference import answer_sets, predict_one

    if bool(options.image) == bool(options.data or options.split):
        raise ValueError(
            "--image, --data, --split: give pictures, or data sets, and not both; --split means "
            "the data sets of the run's recipe"
        )
    if not options.image and (options.task or options.question):
        name = "--task" if options.task else "--question"
        raise ValueError(
            f"{name}: goes with --image; data sets have their questions, and --data TASK=DATASET "
            "says which task answers one"
        )
    if options.image and options.out:
        raise ValueError("--out: goes with data sets; the answer about pictures is printed")
    if options.image:
        return predict_one(options.run, options.image, options.question, options.task, changes)
    return answer_sets(options.run, options.data, options.split, options.out, changes, score=False)


def check_serve(options: argparse.Namespace) -> None:
    """Errors: ValueError for --serve beside what its requests say, and --port without it."""
    if not options.serve:
        raise ValueError("--port: goes with --serve")
    for name in ("image", "question", "task", "data", "split", "out"):
        if getattr(options, name):
            raise ValueError(f"--{name}: does not go with --serve, whose requests say it; drop it")


def features(arguments: list[str]) -> int:
    """Run a recipe's vision encoder over a data set and store what it gives."""
    parser = command_parser("features")
    parser.epilog = "Further options are keys of the recipe, as in `vlds train`."
    parser.add_argument("--config", required=True, metavar="RECIPE", help="whose `vision` it is")
    parser.add_argument("--data", required=True, metavar="DATASET", help="data set of pictures")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder, or one to go on with"
    )
    parser.add_argument("--name", help="of the new data set; default: that of the old, _features")
    options, keys = parser.parse_known_args(arguments)
    from vlds.config import parse_recipe
    from vlds.features import compute_features

    recipe = parse_recipe(["--config", options.config, *keys], "vlds features")
    return compute_features(recipe, options.data, options.out, options.name)


def convert(arguments: list[str]) -> int:
    """Write a run in another layout, or take another layout's weights."""
    from vlds.convert.command import convert as run

    return run(arguments)


def report(arguments: list[str]) -> int:
    """Show runs: a page, or tables for a paper."""
    parser = command_parser("report")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="run folders; the others are compared with the first",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("html", "md", "csv"), default="html",
        help="html: report.html, one page; md: a table to paste; csv: one number a row, "
        "unrounded; default: html",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the report; default: the first run for html, the terminal for md and csv",
    )  # fmt: skip
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N",
        help="bootstrap resamples behind each interval; 0: no intervals; default: 1000",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.resamples < 0:
        raise ValueError(f"--resamples: got {options.resamples}; give 0 or more")
    from vlds.report.read.inputs import find_runs
    from vlds.report.render.write import report_text, write_report

    runs, strangers = find_runs(options.runs)
    out = options.out or (runs[0].folder if options.format == "html" else None)
    if out is None:
        tell(report_text(runs, options.format, options.resamples), end="")
    else:
        tell(write_report(runs, out, options.format, options.resamples))
    for error in strangers:
        complain("vlds report: left out", error)
    return 2 if strangers else 0


def demo(arguments: list[str]) -> int:
    """Everything once on made pictures: data, pre-training, adapters, scores, report."""
    parser = command_parser("demo")
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N",
        help="processes that train together; default: 2",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR",
        help="folder for all of it; default: runs/demo",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of data and runs; default: 0"
    )
    options = parser.parse_args(arguments)
    from vlds.cli.demo import run_demo

    return run_demo(options.out, options.seed, options.ranks)


def command_parser(name: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command, described by its function's docstring."""
    about = " ".join((COMMANDS[name].__doc__ or "").split())
    if name in READ_RUNS:
        epilog = f"{epilog} {TRUST_HELP}" if epilog else TRUST_HELP
    return argparse.ArgumentParser(
        prog=f"vlds {name}",
        description=described(name, about),
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=HelpPage,
    )


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "features": features,
    "describe": describe,
    "plan": plan,
    "convert": convert,
    "report": report,
    "demo": demo,
}
SUMMARIES = {
    "demo": "everything once, on made pictures",
    "train": "run a recipe",
    "evaluate": "score a run on data sets, or a file of predictions",
    "predict": "answer about pictures, or write a leaderboard's file",
    "report": "show runs: a page and a picture, or tables",
    "convert": "write a run in another layout, or read one",
    "describe": "count a recipe's parameters by part",
    "plan": "say how many bytes each rank of a run would hold",
    "features": "store what a vision encoder gives for a data set",
}
"""In the order in which a newcomer meets them."""
