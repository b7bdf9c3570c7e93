"""The commands that use runs: `evaluate` and `predict` let one answer; `report`, `sweep` and
`compare` make tables of several.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlds.cli.words import command_parser
from vlds.recipe.paths import NO_FOLDER
from vlds.runtime.artifact_files import RECIPE, check_changes, find_artifact
from vlds.runtime.command_line import CommandParser
from vlds.runtime.terminal import complain, tell

DEFAULT_PORT = 8000
SPLIT_HELP = (
    "read the data sets that the run's tasks list under `evaluate` or `test`; results on test data "
    "are named TASK.test"
)
RUN_KEYS = """\
change keys of the run's recipe, as in `vlds train`: keys of its tasks and data, such as
--tasks.vqa.decoding.answers FILE or --data.eval_batch_size 16"""


def with_run(
    parser: CommandParser, options: argparse.Namespace, keys: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and keys of the run's recipe. A word that is no key's value names
    the run, as in `vlds report RUN`; argparse itself would take the value of a key for it.

    Errors: ValueError if no run is named, or several are, where the command needs one.
    """
    # The numbers of the words that no option before them may take as its value: of
    # `--data.eval_batch_size 16 runs/vqa --tasks.vqa.prompt=x` only 2.
    before = ["", *keys]
    words = [
        number
        for number, (key, word) in enumerate(zip(before, keys, strict=False))
        if not word.startswith("-") and not (key.startswith("--") and "=" not in key)
    ]
    needs_run = not getattr(options, "predictions", None)
    if words and needs_run and options.run is None:
        options.run = Path(keys.pop(words.pop(0)))
        # The other words stood behind it, and have moved up by one.
        words = [number - 1 for number in words]
    if words:
        raise ValueError(
            f"{keys[words[0]]!r}: unexpected word; `{parser.prog}` takes one run, and an option's "
            "value stands behind it"
        )
    if needs_run and options.run is None:
        either = hasattr(options, "predictions")
        missing = "one of the arguments RUN --predictions is required"
        parser.error(missing if either else "the following arguments are required: RUN")
    return options, keys


def check_run_words(
    parser: CommandParser, options: argparse.Namespace, keys: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """As `with_run`, for a run that is asked: it and the data are there, and its recipe has the
    keys.

    Errors: ValueError.
    """
    options, keys = with_run(parser, options, keys)
    if options.run is not None:
        folder = find_artifact(options.run)
        check_changes(keys)
        if keys:
            from vlds.recipe.sketch import check_words

            check_words(["--config", str(folder / RECIPE), *keys])
    for entry in options.data:
        # TASK=FOLDER, or a folder, whose own name may hold "=".
        folder = entry.partition("=")[2] or entry
        if not any(NO_FOLDER.search(place) or Path(place).exists() for place in (entry, folder)):
            raise ValueError(
                f"--data: data set {folder}: no such folder; check the path, or prepare it "
                "with `vlds data`"
            )
    return options, keys


def check_any_run(folders: Sequence[Path]) -> None:
    """Errors: ValueError if none of the folders holds a run."""
    from vlds.report.read import check_run

    errors = []
    for folder in folders:
        try:
            return check_run(folder)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def evaluate(arguments: list[str]) -> int:
    """Score a run on data sets, or score a file of predictions.

    vlds evaluate runs/vqa
    vlds evaluate runs/vqa --data shards/mine --out scores
    vlds evaluate --predictions answers.json --data shards/vqav2-val
    """
    options, keys = evaluate_words(arguments)
    # No model is needed, so this starts without ranks (`WITHOUT_RANKS`).
    if options.predictions:
        from vlds.evaluation.prediction_files import score_file

        return score_file(options.predictions, options.data, options.task, keys, options.out)
    from vlds.evaluation.inference import answer_sets

    return answer_sets(options.run, options.data, options.split, options.out, keys, score=True)


def evaluate_words(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What its command line says, and keys of the run's recipe. Errors: ValueError."""
    parser = command_parser(
        evaluate,
        accepts_keys=True,
        epilog=f"With --run, further options {RUN_KEYS}. With --predictions, they are fields of "
        "the task class, such as --choices FILE of GQA.",
    )
    parser.needed = ["--run"]
    parser.usage = """%(prog)s RUN [options]
       %(prog)s --predictions FILE [FILE ...] [options]"""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--run", type=Path, metavar="RUN",
        help="run or artifact folder to score; --run itself may be left out",
    )  # fmt: skip
    source.add_argument(
        "--predictions", type=Path, nargs="+", metavar="FILE",
        help="score these answers without a model: leaderboard files, or files that vlds wrote",
    )  # fmt: skip
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data", nargs="+", default=[], metavar="DATASET",
        help="data set folders, as TASK=FOLDER if several tasks of the run can read one; default: "
        "the data sets of the run's recipe. With --predictions: the data sets that they answer",
    )  # fmt: skip
    data.add_argument(
        "--split", nargs="+", default=[], choices=["evaluate", "test"],
        help=f"{SPLIT_HELP}; default: both",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="CLASS",
        help="with --predictions: the task class that scores them; default: the class that reads "
        "such data",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where to write predictions and scores; default: RUN/predictions; with --predictions, "
        "nothing is written by default",
    )  # fmt: skip
    options, keys = check_run_words(parser, *parser.parse_known_args(arguments))
    if options.predictions and options.split:
        raise ValueError("--split: chooses data sets of a run; with --predictions, give --data")
    if options.task and not options.predictions:
        raise ValueError(
            "--task: goes with --predictions; to choose a task of a run, give --data TASK=DATASET"
        )
    return options, keys


def predict(arguments: list[str]) -> int:
    """Answer a question about pictures, describe them, or write leaderboard files.

    vlds predict runs/vqa --image beach.jpg --question "Is it raining?"
    vlds predict runs/chat --question "What is rain?"
    vlds predict runs/vqa --serve
    vlds predict runs/vqa --split test --out answers
    """
    options, keys = predict_words(arguments)
    if options.serve:
        from vlds.evaluation.serve import serve

        return serve(options.run, DEFAULT_PORT if options.port is None else options.port, keys)
    from vlds.evaluation.inference import answer_sets, predict_one

    if not (options.data or options.split):
        images = options.image or []
        return predict_one(options.run, images, options.question, options.task, keys)
    return answer_sets(options.run, options.data, options.split, options.out, keys, score=False)


def predict_words(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What its command line says, and keys of the run's recipe. Errors: ValueError."""
    parser = command_parser(predict, accepts_keys=True, epilog=f"Further options {RUN_KEYS}.")
    parser.needed = ["--run"]
    parser.usage = """%(prog)s RUN [options]
            (--image FILE ... | --question TEXT | --data DATASET ... |
             --split LIST ... | --serve)"""
    parser.add_argument(
        "--run", type=Path, metavar="RUN",
        help="run or artifact folder to ask; --run itself may be left out",
    )  # fmt: skip
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--image", nargs="+", metavar="FILE", help="a picture, or the two of a pair")
    asked.add_argument(
        "--data", nargs="+", default=[], metavar="DATASET",
        help="answer whole data sets instead of pictures: folders, as TASK=FOLDER if several tasks "
        "of the run can read one",
    )  # fmt: skip
    asked.add_argument(
        "--split", nargs="+", default=[], choices=["evaluate", "test"], help=SPLIT_HELP
    )
    asked.add_argument(
        "--serve", action="store_true",
        help="keep the model loaded and answer requests of this machine: a web page for people, "
        "JSON for programs",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, help=f"with --serve: 0 for any free port; default: {DEFAULT_PORT}"
    )
    parser.add_argument(
        "--question",
        default="",
        help="question or statement; leave it out for captions. Without --image, a model that "
        "takes texts alone answers it",
    )
    parser.add_argument("--task", help="task of the run; required if it has several")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="with --data or --split: where to write predictions and leaderboard files; default: "
        "RUN/predictions",
    )  # fmt: skip
    options, keys = check_run_words(parser, *parser.parse_known_args(arguments))
    if options.port is not None and not options.serve:
        raise ValueError("--port: goes with --serve")
    others = options.data or options.split or options.serve
    for name in ("question", "task"):
        if getattr(options, name) and others:
            raise ValueError(
                f"--{name}: goes with --image; data sets hold their questions, requests to a "
                "server name theirs, and --data TASK=DATASET chooses the task"
            )
    if not (others or options.image or options.question):
        parser.error("one of the arguments --image --question --data --split --serve is required")
    if options.out and not (options.data or options.split):
        raise ValueError("--out: goes with --data or --split; other answers are not written")
    for image in options.image or ():
        if "://" not in image and not Path(image).exists():
            raise ValueError(f"--image: no such file: {image}; check the path")
    return options, keys


def report(arguments: list[str]) -> int:
    """Compare runs: a page with charts, or tables for a paper.

    vlds report runs/vqa
    vlds report runs/* --format md
    """
    parser = command_parser(report)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="run folders; the first one is the baseline of the comparison",
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
    parser.add_argument(
        "--pictures", choices=("few", "embed", "folder", "none"), default="few",
        help="few: the page holds those of mistakes and samples; embed: also thumbnails of all "
        "predictions, up to 10 MB; folder: these lie in report_pictures/ beside the page; none: no "
        "pictures; default: few",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.resamples < 0:
        raise ValueError(f"--resamples: got {options.resamples}; give 0 or more")
    if options.pictures != "few" and options.format != "html":
        raise ValueError(
            f"--pictures: only the page has pictures, and --format is {options.format}"
        )
    check_any_run(options.runs)
    from vlds.report.page import report_text, write_report
    from vlds.report.read import find_runs

    # What can be read is shown; the rest is told at the end, and by the exit code.
    runs, errors = find_runs(options.runs)
    out = options.out or (runs[0].folder if options.format == "html" else None)
    if out is None:
        tell(report_text(runs, options.format, options.resamples), end="")
    else:
        tell(write_report(runs, out, options.format, options.resamples, options.pictures))
    for error in errors:
        complain("vlds report: left out", error)
    return 2 if errors or any(run.damage for run in runs) else 0


def sweep(arguments: list[str]) -> int:
    """Run recipes with several seeds, for a table; a finished run is never repeated.

    vlds sweep sweeps/demo.yaml --dry-run
    vlds sweep my_table.yaml --ranks 8
    vlds sweep sweeps/demo.yaml --at-once 2
    """
    parser = command_parser(
        sweep,
        accepts_keys=True,
        epilog="Further options are keys of the file, such as --seeds '[0]' or "
        "--overrides.training.steps 10.",
    )
    parser.add_argument("file", metavar="SWEEP", help="a YAML file of yours, or one of vlds")
    parser.add_argument(
        "--ranks", metavar="N",
        help="processes of each run; default: one per GPU, or one without a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--runs", metavar="N", help="do at most N runs; default: all that are missing and free"
    )
    parser.add_argument(
        "--at-once", metavar="N",
        help="N runs at a time, each on its share of this machine; default: one after another",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what is left to do, and its time"
    )
    options, keys = parser.parse_known_args(arguments)
    from vlds.recipe.sketch import SWEEP, check_words

    check_words(["--config", options.file, *keys], SWEEP)
    from vlds.cli.sweep import sweep as run

    return run(
        [options.file, *keys], ranks=options.ranks, runs=options.runs, at_once=options.at_once,
        is_dry=options.dry_run,
    )  # fmt: skip


def compare(arguments: list[str]) -> int:
    """Show runs as one table: mean and deviation over seeds, costs, published values.

    vlds compare sweeps/demo.yaml
    vlds compare runs/r8-* runs/full-* --format md
    vlds compare sweeps/demo.yaml --minus "single adapter"
    """
    parser = command_parser(
        compare,
        accepts_keys=True,
        epilog="With a sweep, further options are keys of its file, as in `vlds sweep`.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run folders, of which those that differ in the seed alone make a row; or one sweep",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("terminal", "md", "html", "csv", "tex"), default="terminal",
        help="md: to paste; html: a page with pictures; csv: one number a row, unrounded; tex: for "
        "LaTeX; default: terminal",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of compare.FORMAT; default: the terminal, and for html the sweep's or the "
        "first run's folder",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("evaluate", "test"),
        help="list of data whose scores are shown; default: evaluate, or as the sweep says",
    )  # fmt: skip
    parser.add_argument(
        "--minus", metavar="ROW",
        help="show every row's scores less those of this row, seed by seed, with intervals",
    )  # fmt: skip
    options, keys = parser.parse_known_args(arguments)
    if options.runs[0].endswith((".yaml", ".yml")):
        from vlds.recipe.sketch import SWEEP, check_words

        check_words(["--config", options.runs[0], *keys], SWEEP)
    else:
        check_any_run([Path(run) for run in options.runs])
    from vlds.report.sweep import show

    return show(options.runs, keys, options.format, options.out, options.split, options.minus)
