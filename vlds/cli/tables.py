"""The commands that make tables of several runs: report, sweep and compare."""

from __future__ import annotations

from pathlib import Path

from vlds.cli.help_texts import command_parser
from vlds.launch.rank import complain
from vlds.runtime.terminal import tell


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
    options = parser.parse_args(arguments)
    if options.resamples < 0:
        raise ValueError(f"--resamples: got {options.resamples}; give 0 or more")
    from vlds.report.read.inputs import find_runs
    from vlds.report.render.write import report_text, write_report

    runs, errors = find_runs(options.runs)
    out = options.out or (runs[0].folder if options.format == "html" else None)
    if out is None:
        tell(report_text(runs, options.format, options.resamples), end="")
    else:
        tell(write_report(runs, out, options.format, options.resamples))
    for error in errors:
        complain("vlds report: left out", error)
    return 2 if errors or any(run.damage for run in runs) else 0


def sweep(arguments: list[str]) -> int:
    """Run recipes with several seeds, for a table; a finished run is never repeated.

    vlds sweep sweeps/demo.yaml --dry-run
    vlds sweep my_table.yaml --ranks 8
    vlds sweep sweeps/demo.yaml --at-once 2
    """
    parser = command_parser(sweep, accepts_keys=True)
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
    from vlds.sweep.command import sweep as run

    return run(
        [options.file, *keys], ranks=options.ranks, runs=options.runs, at_once=options.at_once,
        is_dry=options.dry_run,
    )  # fmt: skip


def compare(arguments: list[str]) -> int:
    """Show runs as one table: mean and deviation over seeds, costs, published values.

    vlds compare sweeps/demo.yaml
    vlds compare runs/r8-* runs/full-* --format md
    """
    parser = command_parser(compare, accepts_keys=True)
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
    options, keys = parser.parse_known_args(arguments)
    from vlds.sweep.table import show

    return show(options.runs, keys, options.format, options.out, options.split)
