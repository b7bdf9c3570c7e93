"""`vlds completion`: a script with which a shell completes commands, options, recipes and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from vlds.cli.words import TRAIN, command_parser
from vlds.runtime.command_line import DESCRIBE, CommandParser, Described
from vlds.runtime.process import shipped
from vlds.runtime.terminal import tell

Command = Callable[[list[str]], int]
READ = {TRAIN: "recipes", "describe": "recipes", "plan": "recipes", "sweep": "sweeps",
        "compare": "sweeps"}  # fmt: skip
"""Command -> what of vlds it reads."""
FUNCTIONS = {
    "bash": '_vlds_{0}_file() {{ compgen -W "{1}" -- "$1"; compgen -f -- "$1"; }}\n',
    "zsh": "_vlds_{0}_file() {{ compadd {1}; _files; }}\n",
}
"""Shell -> a function that completes names that vlds brings, and files."""


def completion(arguments: list[str]) -> int:
    """Print a script with which a shell completes commands, options, recipes and their keys.

    vlds completion bash > ~/.local/share/bash-completion/completions/vlds
    vlds completion zsh > _vlds   # in a folder of $fpath
    """
    own = command_parser(completion)
    own.add_argument("shell", choices=list(FUNCTIONS), help="the shell that will read it")
    shell = own.parse_args(arguments).shell
    import shtab

    from vlds.cli.main import COMMANDS, RECIPE_PARSERS

    whole = CommandParser(prog="vlds")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = RECIPE_PARSERS[name]() if name in RECIPE_PARSERS else parser_of(command)
        about = (parser.description or "").partition(".")[0]
        added = commands.add_parser(name, parents=[parser], add_help=False, help=about)
        kind = READ.get(name)
        for key in recipe_keys() if kind == "recipes" else ():
            added.add_argument(key)
        complete_files(added, {shell: f"_vlds_{kind}_file"} if kind else shtab.FILE)
    names = {kind: [n for n in shipped(kind) if n.endswith(".yaml")] for kind in set(READ.values())}
    functions = (FUNCTIONS[shell].format(kind, " ".join(names[kind])) for kind in sorted(names))
    tell(shtab.complete(whole, shell, preamble="".join(functions)), end="")
    return 0


def parser_of(command: Command) -> CommandParser:
    """The parser that a command makes for its arguments."""
    try:
        command([DESCRIBE])
    except Described as found:
        return found.parser
    raise AssertionError("a command parses its arguments with a CommandParser")


def complete_files(parser: argparse.ArgumentParser, words: Mapping[str, object]) -> None:
    """Let what takes any text or path complete files; words without an option, by `words`."""
    import shtab

    if all(action.option_strings for action in parser._actions):
        parser.add_argument("file", nargs="*")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                complete_files(inner, shtab.FILE)
        elif action.choices is None and action.nargs != 0:
            option = shtab.FILE if action.type in (None, str, Path) else {}
            action.complete = option if action.option_strings else words  # type: ignore[attr-defined]


def recipe_keys() -> list[str]:
    """The keys of a recipe that it has whichever classes it chooses."""
    from vlds.recipe.choices import field_types, sections
    from vlds.recipe.config import Recipe

    parts = sections({}, Recipe, absent=True)
    return [f"--{f'{place}.{n}'.strip('.')}" for place, cls in parts for n in field_types(cls)]
