"""The options of `vlds convert merge`: which go with which way of combining."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HELP = """\
  fold        every method into the weights, or made plainer (Compacter to
              Adapter, ...), or refused; written as by `vlds convert hf`
  average     mean of the weights of several runs of one recipe
  arithmetic  base + sum of weight x (run - base); a weight below 0 forgets
  take        a run of --task alone, out of weights that are stacked over tasks
  put         the first run, with the second run's slices for --task
"""
MERGES: dict[str, tuple[range, tuple[str, ...]]] = {
    "fold": (range(1, 2), ()),
    "average": (range(2, 1000), ("weights",)),
    "arithmetic": (range(1, 1000), ("base", "weights")),
    "take": (range(1, 2), ("task",)),
    "put": (range(2, 3), ("task",)),
}
"""How -> numbers of runs, options that go with it; all but weights are needed."""
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)


def add_merge_options(parser: argparse.ArgumentParser, run_help: str) -> None:
    """All but those that every layout has."""
    # argparse by itself takes -1e-3 for an option.
    parser._negative_number_matcher = NEGATIVE
    parser.add_argument(
        "--run", type=Path, nargs="+", required=True, help=f"one or several: {run_help}"
    )
    parser.add_argument("--how", choices=sorted(MERGES), default="fold", help="default: fold")
    parser.add_argument("--base", type=Path, help="of arithmetic: the run that all began with")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="WEIGHT",
        help="of average and arithmetic: one for each run; default: 1 each",
    )  # fmt: skip
    parser.add_argument("--task", help="of take and put: the task's name")


def check_merge(options: argparse.Namespace) -> None:
    """Errors: ValueError if options do not go with each other, or the base is not there."""
    how = options.how
    num, wanted = MERGES[how]
    if len(options.run) not in num:
        least = f"{num.start}" if len(num) == 1 else f"{num.start} or more"
        raise ValueError(f"--run: {how} takes {least}, got {len(options.run)}")
    for name in ("base", "weights", "task"):
        given = getattr(options, name) is not None
        if given and name not in wanted:
            fitting = " and ".join(h for h, (_, names) in MERGES.items() if name in names)
            raise ValueError(f"--{name} goes with --how {fitting}, not with {how}")
        if not given and name in wanted and name != "weights":
            raise ValueError(f"--{name}: --how {how} needs it")
    if options.base is not None and not options.base.is_dir():
        raise ValueError(
            f"--base: no such folder: {options.base}; name one that `vlds train` or "
            "`vlds convert` wrote"
        )
