"""`plan`: which official files are there, where the others are, and the commands that pack them."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep import official
from data_prep.command import PROGRAM, new_command
from data_prep.official.published import Download, Published
from vlds.data.shards.info import DATASET_FILE
from vlds.runtime.terminal import tell

FOLDER_OPTIONS = ("--src", "--images")


def all_published() -> dict[str, Published]:
    """Command -> what its publisher offers, in the order of the titles."""
    modules = (getattr(official, name) for name in official.__all__)
    known = (entry for module in modules for entry in getattr(module, "PUBLISHED", ()))
    ordered = sorted(known, key=lambda entry: str(entry.title).lower())
    return {entry.command.split()[0]: entry for entry in ordered}


def downloads_of(published: Published) -> list[Download]:
    """Each download once, in the order of the splits."""
    return list(dict.fromkeys(entry for split in published.splits.values() for entry in split))


def words_of(published: Published, split: str, data: Path, out: Path) -> list[str]:
    """The words of the command that packs a split, after the program's name."""
    command, *options = published.command.split()
    places = [
        str(data / word) if option in FOLDER_OPTIONS else word
        for option, word in zip([command, *options], options, strict=False)
    ]
    folder = out / f"{published.name or command}-{split}"
    return [command, *places, published.option, split, "--out", str(folder)]


def plan_lines(published: Published, data: Path, out: Path) -> Iterator[str]:
    """The files of a data set, and its commands; a comment where files are missing."""
    yield f"# {published.title}"
    for entry in downloads_of(published):
        state = "there  " if (data / entry.gives).exists() else "missing"
        size = f"{entry.size}, " if entry.size else ""
        yield f"#   {state} {data / entry.gives} ({size}{entry.licence}) {entry.address}"
    for split, needed in published.splits.items():
        line = shlex.join([*PROGRAM.split(), *words_of(published, split, data, out)])
        yield line if is_ready(needed, data) else f"# {line}"


def is_ready(needed: Sequence[Download], data: Path) -> bool:
    """True if all files of a split are there."""
    return all((data / entry.gives).exists() for entry in needed)


def run_commands(chosen: Sequence[Published], data: Path, out: Path) -> int:
    """Pack every split whose files are there and that is not packed yet; the exit code of the
    first command that fails, or 0. Says what there was to do."""
    packed, waiting, done = 0, 0, 0
    for published in chosen:
        for split, needed in published.splits.items():
            words = words_of(published, split, data, out)
            # A data set is whole once it has its description, which is written last.
            if (Path(words[-1]) / DATASET_FILE).is_file():
                packed += 1
                continue
            if not is_ready(needed, data):
                waiting += 1
                continue
            tell(shlex.join([*PROGRAM.split(), *words]))
            if code := subprocess.run([sys.executable, "-m", "data_prep", *words]).returncode:
                return code
            done += 1
    nothing = "" if done else "nothing is left to do: "
    hint = f"; `{PROGRAM} plan --data {data}` names the missing files" if waiting else ""
    tell(
        f"{nothing}{done} split{'s' * (done != 1)} packed now, {packed} packed before, {waiting} "
        f"without their files in {data}{hint}"
    )
    return 0


def add_command(commands: Any) -> None:
    """Add `plan`."""
    known = all_published()
    parser = new_command(
        commands,
        "plan",
        "official files: which are there, where the others are, how to pack them",
        "Prints a shell script. Commands whose files are missing are comments. --run runs the "
        "others, except those whose output is complete.",
        examples=["plan --data DOWNLOADED", "plan okvqa gqa --data DOWNLOADED --run"],
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="COMMAND",
        help=f"data sets (default: all): {', '.join(known)}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with a folder for each publisher: COCO, OKVQA, ...",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("shards"), metavar="DIR", help="default: shards"
    )
    parser.add_argument("--run", action="store_true", dest="runs", help="run the commands")

    def run(args: argparse.Namespace) -> int:
        if odd := [name for name in args.names if name not in known]:
            raise ValueError(
                f"{odd[0]} is no data set of a publisher; there are {', '.join(known)}"
            )
        if not args.data.is_dir():
            raise ValueError(f"--data {args.data} is not a folder; name that of the downloads")
        chosen = [known[name] for name in args.names or known]
        if args.runs:
            return run_commands(chosen, args.data, args.out)
        for published in chosen:
            for line in plan_lines(published, args.data, args.out):
                tell(line)
        return 0

    parser.set_defaults(run=run)
