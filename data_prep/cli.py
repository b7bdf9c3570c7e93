"""The command line: official files -> shards, one command a data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.checking import verify
from data_prep.demo import command as demo
from data_prep.official import (
    coco_captions,
    coco_karpathy,
    easy_vqa,
    gqa,
    nlvr2,
    snli_ve,
    value,
    vg,
    vqav2,
)
from data_prep.own_data import jsonl
from data_prep.packed import index_command as foreign
from data_prep.packed import simulate, stats, tokenizer, vocabulary
from data_prep.packing.parallel import LostWorker
from data_prep.preview import command as preview
from vlds.data.errors import ShardError
from vlds.runtime.command_line import CommandParser
from vlds.runtime.disk import CannotWrite
from vlds.runtime.process_end import Interrupted, interruptible
from vlds.runtime.terminal import tell

COMMANDS = (
    vqav2, gqa, nlvr2, coco_karpathy, coco_captions, vg, snli_ve, value, jsonl, easy_vqa, demo,
    foreign, tokenizer, vocabulary, stats, verify, preview, simulate,
)  # fmt: skip
"""Modules that add a command; a new format adds itself here."""
USER_ERROR = 2
Run = Callable[[argparse.Namespace], int | None]
"""Exit code; None is 0."""
INCOMPLETE = ": the data set being written is incomplete; --resume goes on with it"
KEPT = "; finished shards are kept: --resume goes on with them"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, for its exit code; user errors are one line and exit code 2."""
    try:
        args = build_parser().parse_args(arguments)
    except ValueError as error:
        tell(f"error: {error}", error=True)
        return USER_ERROR
    run: Run = args.run
    goes_on = hasattr(args, "resume")
    try:
        with interruptible():
            return run(args) or 0
    except LostWorker as error:
        tell(f"error: {error}{KEPT if goes_on else ''}", error=True)
        return USER_ERROR
    except (ValueError, ShardError, OSError) as error:
        kept = KEPT if goes_on and isinstance(error, CannotWrite) else ""
        tell(f"error: {error}{kept}", error=True)
        return USER_ERROR
    except Interrupted as error:
        out: Path | None = getattr(args, "out", None)
        begun = goes_on and (out is None or out.exists())
        tell(f"interrupted by {error.signal_name}{INCOMPLETE if begun else ''}", error=True)
        return error.exit_code


def build_parser() -> CommandParser:
    """All commands."""
    parser = CommandParser(
        prog="python -m data_prep",
        description="Pack vision-and-language data sets into WebDataset shards.",
        epilog="`python -m data_prep COMMAND --help` says more about a command; `python -m "
        "data_prep jsonl --help` is the one for data of your own.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_command(commands)
    return parser
