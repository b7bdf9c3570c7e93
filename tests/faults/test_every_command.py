"""Whatever one damaged file holds, every command ends with code 0 or 2, or as a signal says, in
bounded time and memory, and without a traceback.

A failing case shows its command, seed and damage: `complaint` draws the same from the same seed.
"""

from __future__ import annotations

import argparse
import os
from random import Random

import pytest

from data_prep.classes.few_shot import LAYOUTS
from data_prep.cli import build_parser
from tests.toys.faults.command_inputs import Inputs
from tests.toys.faults.command_lines import COMMANDS, Command, drawn_file
from tests.toys.faults.forked_commands import num_calls, run_forked
from tests.toys.faults.hostile_inputs import damage_file
from vlds.cli.main import COMMANDS as VLDS_COMMANDS
from vlds.convert.command import build_parser as convert_parser

LARGEST_OUTPUT = 100_000
"""Characters."""
WITHOUT_INPUTS = {
    "data_prep demo": "draws what it packs",
    "data_prep easy-vqa": "reads files of a package alone",
    "vlds completion": "reads no file",
    "vlds data": "its commands are those of data_prep",
    "vlds prove": "tests/prove has refused recipes, and reads them as train does",
    "vlds schema": "reads no file",
    "vlds convert clip": "tests/convert/test_clip.py damages what open_clip wrote",
    **{f"data_prep {each.command}": "reads its files as caltech101 does" for each in LAYOUTS[1:]},
}
"""Commands that are not run here, and why."""
SEEDS = int(os.environ.get("VLDS_SEEDS", "8"))
"""Of each command, in the slow test."""
FIRST_SEED = int(os.environ.get("VLDS_FIRST_SEED", "0"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """What the commands read."""
    return Inputs(tmp_path_factory.mktemp("every"))


def subcommands(parser: argparse.ArgumentParser) -> list[str]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return list(action.choices)


def test_every_command_of_the_tables_is_here() -> None:
    """A new command gets an input here, or a reason why not."""
    known = {f"vlds {name}" for name in VLDS_COMMANDS} - {"vlds convert"}
    known |= {f"vlds convert {layout}" for layout in subcommands(convert_parser())}
    known |= {f"data_prep {name}" for name in subcommands(build_parser())}
    assert {command.name for command in COMMANDS} | set(WITHOUT_INPUTS) == known


def check_whole(inputs: Inputs, command: Command) -> None:
    """Without damage it succeeds."""
    inputs.lay_out(command.reads)
    inputs.run(command.program, command.words)


def complaint(inputs: Inputs, command: Command, seed: int) -> str | None:
    """Damage one file, and run the command; what is wrong with its end, and how to repeat it."""
    draw = Random(f"{command.words} {seed}")
    inputs.lay_out(command.reads)
    path = drawn_file(inputs.case_folder, command, draw)
    how = damage_file(path, draw)
    code, said = run_forked(command.program, command.words.split(), inputs.case_folder)
    fine = (code in command.codes or code > 128) and "Traceback" not in said
    if fine and len(said) < LARGEST_OUTPUT and not victim(inputs):
        return None
    where = path.relative_to(inputs.case_folder)
    return (
        f"seed {seed}: {command.program} {command.words}\n  {where}: {how}\n"
        f"  code {code}, {len(said)} characters: ...{said[-2500:]}"
    )


def victim(inputs: Inputs) -> bool:
    """True if a command wrote outside its folder."""
    ours = {"case", "case.calls", "case.log", "made"}
    return {path.name for path in inputs.top.iterdir()} != ours


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.program} {c.words}")
def test_many_damaged_files(command: Command, inputs: Inputs) -> None:
    check_whole(inputs, command)
    told = [complaint(inputs, command, FIRST_SEED + seed) for seed in range(SEEDS)]
    wrong = list(filter(None, told))
    assert not wrong, "\n\n".join(wrong)


MOST_CALLS = int(os.environ.get("VLDS_CALLS", "12"))
"""Of each command, that are made to fail in the slow test."""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.program} {c.words}")
def test_any_write_may_fail(command: Command, inputs: Inputs) -> None:
    """Whichever write, flush or rename fails, the command says so or does without, and leaves
    nothing half made. `test_disk_faults` looks at what is left of older files."""
    check_whole(inputs, command)
    seen = num_calls(inputs.case_folder)
    assert seen > 0 or "--out" not in command.words
    step = max(1, -(-seen // MOST_CALLS))
    for failing in range(1, seen + 1, step):
        inputs.lay_out(command.reads)
        words = command.words.split()
        code, said = run_forked(command.program, words, inputs.case_folder, failing)
        where = f"call {failing} of {seen}: {said[-2000:]}"
        assert code in (*command.codes, 2), where
        assert "Traceback" not in said, where
        left = [path for path in inputs.case_folder.rglob(".*") if ".partial" in path.name]
        assert left == [], where
